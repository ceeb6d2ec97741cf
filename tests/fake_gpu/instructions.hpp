// The instructions that minidl's kernels write as `asm`, by the formulas of the PTX ISA. compiler.py turns
//     asm volatile("text %0, %1;" : "=r"(a) : "f"(b) : "memory");    into
//     fake_gpu::instruction<FAKE_GPU_TARGET, "text %0, %1;", "=r,f", "memory">(__LINE__, a, b);
// The text, with the letters of the operands in place of %0 and %1, is looked up in TABLE below.

namespace fake_gpu {

template <std::size_t N>
struct Text {
    char letters[N] = {};
    consteval Text(const char (&text)[N]) {
        for (std::size_t i = 0; i < N; i++) letters[i] = text[i];
    }
};

using Bits = unsigned long long;  // of an operand
using Lanes = Bits* const*;       // of each lane of a warp, the operands in the order in which the text names them

inline float real(Bits bits) { return __builtin_bit_cast(float, (unsigned int)bits); }
inline Bits bits(float value) { return __builtin_bit_cast(unsigned int, value); }

// -- conversions ------------------------------------------------------------------------------------------------------

inline Bits bfloat16(float value) {  // to nearest, ties to even
    unsigned int whole = bits(value);
    return value == value ? (whole + 0x7FFF + (whole >> 16 & 1)) >> 16 & 0xFFFF : 0x7FFF;
}

inline Bits float16(float value) {
    return value == value ? __builtin_bit_cast(unsigned short, (_Float16)value) : 0x7FFF;
}

inline float from_bfloat16(Bits half) { return real((half & 0xFFFF) << 16); }
inline float from_float16(Bits half) { return __builtin_bit_cast(_Float16, (unsigned short)half); }
// The last 13 bits of a TF32 number are not read.
inline float from_tf32(Bits word) { return real(word & 0xFFFFE000); }

template <Bits (*convert)(float)>
void cvt(int, Bits* v) {
    v[0] = convert(real(v[1]));
}

template <Bits (*convert)(float)>
void cvt_x2(int, Bits* v) {  // the first one becomes the upper half
    v[0] = convert(real(v[1])) << 16 | convert(real(v[2]));
}

inline void cvt_from_float16(int, Bits* v) { v[0] = bits(from_float16(v[1])); }

inline void cvt_tf32(int, Bits* v) {  // to nearest, ties away from zero
    bool finite = (v[1] & 0x7F800000) != 0x7F800000;
    v[0] = finite ? (v[1] + 0x1000) & 0xFFFFE000 : v[1];
}

inline void cvta(int, Bits* v) { v[0] = fake_gpu_shared_address((const void*)v[1]); }

// -- asynchronous copies ----------------------------------------------------------------------------------------------

template <bool ONLY_16>  // .cg; .ca copies 4, 8 or 16 bytes
void cp_async(int, Bits* v) {
    if (v[2] != 16 && (ONLY_16 || (v[2] != 4 && v[2] != 8))) fake_gpu_fail("cp.async cannot copy %d bytes", (int)v[2]);
    fake_gpu_copy(v[0], (const char*)v[1], v[2], v[3]);
}

template <bool ONLY_16>
void cp_async_all(int line, Bits* v) {
    Bits with_size[] = {v[0], v[1], v[2], v[2]};
    cp_async<ONLY_16>(line, with_size);
}

inline void commit_group(int, Bits*) { fake_gpu_commit(); }
inline void wait_group(int, Bits* v) { fake_gpu_wait_for_copies(v[0]); }
inline void wait_all(int, Bits*) { fake_gpu_wait_for_copies(-1); }
inline void fence_async(int, Bits*) { fake_gpu_fence_async(); }

// -- what a warp does together ------------------------------------------------------------------------------------------

template <void (*act)(Lanes)>
void together(int line, Bits* v) {
    if (number() / 32 * 32 + 32 > blockDim.x * blockDim.y * blockDim.z)
        fake_gpu_fail("an instruction at line %d needs 32 threads in each warp", line);
    fake_gpu_wait(0xFFFFFFFF, line, act, v);
}

// Lane 8 * i + r has the address of row r of matrix i. Lane 4 * g + t receives the numbers 2 * t and 2 * t + 1 of row g
// of each matrix, or of column g if TRANSPOSED.
template <int COUNT, bool TRANSPOSED>
void ldmatrix(Lanes lanes) {
    for (int i = 0; i < COUNT; i++) {
        const unsigned short* rows[8];
        for (int r = 0; r < 8; r++) {
            rows[r] = (const unsigned short*)fake_gpu_shared_pointer(lanes[8 * i + r][COUNT], 16, "ldmatrix");
            if (!rows[r]) return;
        }
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, k = lane % 4 * 2;
            Bits first = TRANSPOSED ? rows[k][g] : rows[g][k], second = TRANSPOSED ? rows[k + 1][g] : rows[g][k + 1];
            lanes[lane][i] = first | second << 16;
        }
    }
}

inline void movmatrix(Lanes lanes) {  // lane 4 * g + t holds the numbers 2 * t and 2 * t + 1 of row g
    auto at = [&](int row, int column) { return lanes[4 * row + column / 2][1] >> 16 * (column % 2) & 0xFFFF; };
    for (int lane = 0; lane < 32; lane++)
        lanes[lane][0] = at(lane % 4 * 2, lane / 4) | at(lane % 4 * 2 + 1, lane / 4) << 16;
}

// d = a b + c of 16 x K and K x 8 numbers, PACK of them in a word. Operands: d0..3, then the words of a (two for each 8
// rows by 4 words), those of b, then c0..3. In lane 4 * g + t word i of a is in row g + 8 * (i % 2) and column
// t + 4 * (i / 2), counted in words; word i of b is in row t + 4 * i and column g; c_i and d_i are in row g + 8 * (i / 2)
// and column 2 * t + i % 2.
template <int K, int PACK, float (*number_of)(Bits)>
void mma(Lanes lanes) {
    constexpr int A = 4, A_WORDS = 4 * K / PACK / 8, B = A + A_WORDS, C = B + A_WORDS / 2;
    float a[16][K], b[K][8];
    for (int lane = 0; lane < 32; lane++) {
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < A_WORDS; i++)
            for (int half = 0; half < PACK; half++) {
                a[g + 8 * (i % 2)][(t + 4 * (i / 2)) * PACK + half] = number_of(lanes[lane][A + i] >> 16 * half);
                if (i < A_WORDS / 2) b[(t + 4 * i) * PACK + half][g] = number_of(lanes[lane][B + i] >> 16 * half);
            }
    }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < K; k++) sum += a[row][k] * b[k][column];
            lanes[lane][i] = bits(real(lanes[lane][C + i]) + sum);
        }
}

// -- what a warpgroup does together, on sm_90a --------------------------------------------------------------------------

// Warp by warp, though: what one of them does depends on others only by shared memory.
template <void (*act)(Lanes)>
void of_warpgroup(int line, Bits* v) {
    if (blockDim.x * blockDim.y * blockDim.z % 128)
        fake_gpu_fail("wgmma at line %d: the block's threads are not warpgroups of 128", line);
    together<act>(line, v);
}

inline void wgmma_fence(Lanes) { fake_gpu_wgmma_fence(number() / 32); }
inline void wgmma_commit(Lanes) { fake_gpu_wgmma_commit(number() / 32); }
inline void wgmma_wait(Lanes lanes) { fake_gpu_wgmma_wait(number() / 32, lanes[0][0]); }

// Reads `count` rows of a, or columns of b, from number `first` on. Each of them has 16 numbers, k = 0..15, of 2 bytes.
// They lie in patterns of 8 lines of `width` bytes. A line holds numbers of one row (K-major) or of one k (MN-major).
// Bits 4 to 6 of a byte's address are XORed with bits 7 to 9: with as many as `width` needs. (PTX ISA, "Asynchronous
// Warpgroup Level Matrix Shared Memory Layout" and "Matrix Descriptor Format".) 8 numbers stay together.
inline bool read_matrix(float (*to)[16], Bits descriptor, bool mn_major, int first, int count,
                        float (*number_of)(Bits)) {
    constexpr Bits KNOWN = 0xC0003FFF3FFF3FFF, SWIZZLE = 0xC000000000000000;
    if (descriptor & ~KNOWN || !(descriptor & SWIZZLE))
        return fake_gpu_fail("wgmma: descriptor %llx: no swizzle, or a base offset, is not emulated", descriptor), false;
    auto field = [&](int bit) { return (unsigned int)(descriptor >> bit & 0x3FFF) << 4; };
    unsigned int start = field(0), leading = field(16), stride = field(32), width = 256 >> (descriptor >> 62);
    for (int mn = first; mn < first + count; mn += mn_major ? 8 : 1)
        for (int k = 0; k < 16; k += mn_major ? 1 : 8) {
            unsigned int line = mn_major ? k : mn, column = 2 * (mn_major ? mn : k);
            unsigned int address = start + line / 8 * stride + line % 8 * width;
            address += mn_major ? column / width * leading + column % width : column;
            address ^= (address >> 7 & (width / 16 - 1)) << 4;
            auto numbers = (const unsigned short*)fake_gpu_wgmma_read(number() / 32, address);
            if (!numbers) return false;
            for (int i = 0; i < 8; i++)
                (mn_major ? to[mn - first + i][k] : to[mn - first][k + i]) = number_of(numbers[i]);
        }
    return true;
}

// d = a b + d of 64 x 16 and 16 x n numbers. Operands: n / 2 of d, then what is named below. Warp w of a warpgroup holds
// the rows 16 * w and on of d. In its lane 4 * g + t d_i is in row g + 8 * (i / 2 % 2) and column
// 8 * (i / 4) + 2 * t + i % 2.
inline void product_of_warpgroup(Lanes lanes, int n, float (*number_of)(Bits)) {
    enum { DESCRIPTOR_A, DESCRIPTOR_B, SCALE_D, SCALE_A, SCALE_B, TRANSPOSE_A, TRANSPOSE_B, COUNT };
    float a[16][16], b[128][16];
    const Bits* v = lanes[0] + n / 2;
    for (int lane = 1; lane < 32; lane++)
        if (__builtin_memcmp(v, lanes[lane] + n / 2, COUNT * sizeof(Bits)))
            return fake_gpu_fail("wgmma: lanes 0 and %d have different descriptors", lane);
    if (v[SCALE_D] != 1 || v[SCALE_A] != 1 || v[SCALE_B] != 1 || v[TRANSPOSE_A] > 1 || v[TRANSPOSE_B] > 1)
        return fake_gpu_fail("wgmma: scales other than 1, or a transposition other than 0 and 1, are not emulated");
    if (!fake_gpu_wgmma_begins(number() / 32, v[DESCRIPTOR_A], v[DESCRIPTOR_B])) return;
    if (!read_matrix(a, v[DESCRIPTOR_A], v[TRANSPOSE_A], number() / 32 % 4 * 16, 16, number_of)) return;
    if (!read_matrix(b, v[DESCRIPTOR_B], v[TRANSPOSE_B], 0, n, number_of)) return;
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < n / 2; i++) {
            int row = lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + lane % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[column][k];
            lanes[lane][i] = bits(real(lanes[lane][i]) + sum);
        }
}

template <int N, float (*number_of)(Bits)>
void wgmma(Lanes lanes) {
    product_of_warpgroup(lanes, N, number_of);
}

// -- the table ----------------------------------------------------------------------------------------------------------

constexpr int SM_90A = 901;  // FAKE_GPU_TARGET: __CUDA_ARCH__, and 1 more for an architecture with an "a"
enum Order { ANYWHERE, MEMORY };  // MEMORY: must be `volatile` and clobber memory, or compilers move it across others

struct Instruction {
    const char* text;
    int architecture, results;  // the first operands of the text are results
    Order order;
    void (*run)(int line, Bits* values);
    bool in_place = false;  // the results are read, too
};

#define F8 "ffffffff"
#define F32 F8 F8 F8 F8
#define WGMMA(n, sums, type, number_of)                                                                           \
    {"wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" sums "},l,l,n,n,n,n,n", SM_90A, n / 2,   \
     MEMORY, of_warpgroup<wgmma<n, number_of>>, true}

constexpr Instruction TABLE[] = {
    {"cvt.rn.bf16.f32 h,f", 800, 1, ANYWHERE, cvt<bfloat16>},
    {"cvt.rn.bf16x2.f32 r,f,f", 800, 1, ANYWHERE, cvt_x2<bfloat16>},
    {"cvt.rn.f16.f32 h,f", 750, 1, ANYWHERE, cvt<float16>},
    {"cvt.rn.f16x2.f32 r,f,f", 800, 1, ANYWHERE, cvt_x2<float16>},
    {"cvt.f32.f16 f,h", 750, 1, ANYWHERE, cvt_from_float16},
    {"cvt.rna.tf32.f32 r,f", 800, 1, ANYWHERE, cvt_tf32},
    {"cvta.to.shared.u64 l,l", 750, 1, ANYWHERE, cvta},
    {"cp.async.ca.shared.global [r],[l],n", 800, 0, MEMORY, cp_async_all<false>},
    {"cp.async.cg.shared.global [r],[l],n", 800, 0, MEMORY, cp_async_all<true>},
    {"cp.async.ca.shared.global [r],[l],n,r", 800, 0, MEMORY, cp_async<false>},
    {"cp.async.cg.shared.global [r],[l],n,r", 800, 0, MEMORY, cp_async<true>},
    {"cp.async.commit_group", 800, 0, MEMORY, commit_group},
    {"cp.async.wait_group n", 800, 0, MEMORY, wait_group},
    {"cp.async.wait_all", 800, 0, MEMORY, wait_all},
    {"fence.proxy.async.shared::cta", 900, 0, MEMORY, fence_async},
    {"ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r},[r]", 750, 1, MEMORY, together<ldmatrix<1, false>>},
    {"ldmatrix.sync.aligned.m8n8.x2.shared.b16 {rr},[r]", 750, 2, MEMORY, together<ldmatrix<2, false>>},
    {"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {rrrr},[r]", 750, 4, MEMORY, together<ldmatrix<4, false>>},
    {"ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {r},[r]", 750, 1, MEMORY, together<ldmatrix<1, true>>},
    {"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {rr},[r]", 750, 2, MEMORY, together<ldmatrix<2, true>>},
    {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {rrrr},[r]", 750, 4, MEMORY, together<ldmatrix<4, true>>},
    {"movmatrix.sync.aligned.m8n8.trans.b16 r,r", 750, 1, ANYWHERE, together<movmatrix>},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {ffff},{rrrr},{rr},{ffff}", 800, 4, ANYWHERE,
     together<mma<16, 2, from_bfloat16>>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {ffff},{rr},{r},{ffff}", 800, 4, ANYWHERE,
     together<mma<8, 2, from_bfloat16>>},
    {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {ffff},{rrrr},{rr},{ffff}", 800, 4, ANYWHERE,
     together<mma<16, 2, from_float16>>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {ffff},{rr},{r},{ffff}", 750, 4, ANYWHERE,
     together<mma<8, 2, from_float16>>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {ffff},{rrrr},{rr},{ffff}", 800, 4, ANYWHERE,
     together<mma<8, 1, from_tf32>>},
    {"mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {ffff},{rr},{r},{ffff}", 800, 4, ANYWHERE,
     together<mma<4, 1, from_tf32>>},
    {"wgmma.fence.sync.aligned", SM_90A, 0, MEMORY, of_warpgroup<wgmma_fence>},
    {"wgmma.commit_group.sync.aligned", SM_90A, 0, MEMORY, of_warpgroup<wgmma_commit>},
    {"wgmma.wait_group.sync.aligned n", SM_90A, 0, MEMORY, of_warpgroup<wgmma_wait>},
    WGMMA(16, F8, "bf16", from_bfloat16),
    WGMMA(32, F8 F8, "bf16", from_bfloat16),
    WGMMA(64, F32, "bf16", from_bfloat16),
    WGMMA(128, F32 F32, "bf16", from_bfloat16),
    WGMMA(16, F8, "f16", from_float16),
    WGMMA(32, F8 F8, "f16", from_float16),
    WGMMA(64, F32, "f16", from_float16),
    WGMMA(128, F32 F32, "f16", from_float16),
};
#undef F8
#undef F32
#undef WGMMA

// -- a statement's text -------------------------------------------------------------------------------------------------

// Each letter wants its type: h 16 bits, r 32, l 64, f float, n a constant.
template <class T>
constexpr bool fits(char letter) {
    using Bare = std::decay_t<T>;
    int size = sizeof(Bare);
    if (letter == 'f') return std::is_same_v<Bare, float>;
    if (std::is_floating_point_v<Bare>) return false;
    return letter == 'n' ? std::is_integral_v<Bare> : size == (letter == 'h' ? 2 : letter == 'r' ? 4 : letter == 'l' ? 8 : 0);
}

constexpr int MOST = 64 + 7;  // operands of a statement: those of wgmma

struct Statement {
    char text[160] = {};     // as in TABLE, without separators
    int names[MOST] = {};    // for each operand of the text, which of the statement's it is, or -1
    int numbers[MOST] = {};  // or, if -1, the number that stands there
    char letters[MOST] = {}; // of the statement's operands
    bool written[MOST] = {}, read[MOST] = {};
    int named = 0, operands = 0, size = 0;

    constexpr Statement(const char* source, const char* constraints) {
        for (; *constraints; constraints++) {
            if (*constraints == '=' || *constraints == '+') {
                written[operands] = true, read[operands] = *constraints == '+';
            } else if (*constraints != ',') {
                read[operands] |= !written[operands];
                letters[operands++] = *constraints;
            }
        }
        bool name_ends = false;  // of the instruction: digits are numbers from there on
        while (*source) {
            bool is_operand = *source == '%';
            if (is_operand || (name_ends && is_digit(*source))) {
                int number = 0;
                for (source += is_operand; is_digit(*source); source++) number = 10 * number + *source - '0';
                names[named] = is_operand ? number : -1, numbers[named++] = number;
                text[size++] = !is_operand ? 'n' : number < operands ? letters[number] : '?';
            } else {
                name_ends |= size && is_separator(*source);
                if (!is_separator(*source)) text[size++] = *source;
                source++;
            }
        }
    }

    static constexpr bool is_digit(char letter) { return letter >= '0' && letter <= '9'; }

    static constexpr bool is_separator(char letter) {
        return letter == ' ' || letter == '\t' || letter == '\n' || letter == ',' || letter == ';';
    }

    constexpr bool is(const char* other) const {  // but for separators
        int i = 0;
        for (; *other; other++)
            if (!is_separator(*other) && *other != text[i++]) return false;
        return !text[i];
    }

    constexpr int find() const {
        for (int i = 0; i < (int)std::size(TABLE); i++)
            if (is(TABLE[i].text)) return i;
        return -1;
    }

    template <class... T>
    constexpr bool operands_fit() const {
        int i = 0;
        return (fits<T>(letters[i++]) && ...);
    }

    // Whether exactly the results are written, and all others are read, and the results if they are `in_place`.
    constexpr bool results_are(int count, bool in_place) const {
        bool used[MOST] = {};
        for (int i = 0; i < named; i++) {
            if (names[i] < 0) continue;
            if (i < count ? !written[names[i]] || used[names[i]] : !read[names[i]]) return false;
            if (in_place && !read[names[i]]) return false;
            used[names[i]] = true;
        }
        for (int i = 0; i < operands; i++)
            if (!used[i]) return false;
        int all = 0;
        for (int i = 0; i < operands; i++) all += written[i];
        return all == count;
    }
};

template <class T>
Bits bits_of(const T& operand) {
    Bits result = 0;
    if constexpr (std::is_array_v<T>) return (Bits)&operand;
    else __builtin_memcpy(&result, &operand, sizeof(T));
    return result;
}

template <int ARCHITECTURE, Text TEXT, Text CONSTRAINTS, Text CLOBBERS, class... T>
inline __attribute__((always_inline)) void instruction(int line, T&&... operands) {
    constexpr Statement statement(TEXT.letters, CONSTRAINTS.letters);
    constexpr int index = statement.find();
    static_assert(index >= 0, "the fake GPU does not know this instruction, or not with these operands: see TABLE in "
                              "tests/fake_gpu/instructions.hpp");
    if constexpr (index >= 0) {
        constexpr Instruction known = TABLE[index];
        static_assert(known.architecture <= ARCHITECTURE, "__CUDA_ARCH__ does not have this instruction, or -arch=sm_90a is missing");
        static_assert(statement.results_are(known.results, known.in_place), "results need \"=\" or \"+\", the other operands none");
        static_assert(known.order == ANYWHERE || CLOBBERS.letters[0] == 'm', "it must be volatile and clobber \"memory\"");
        static_assert(sizeof...(T) == statement.operands, "expected an operand for each constraint");
        static_assert(statement.operands_fit<T...>(), "an operand has another type than its letter says");
        Bits given[] = {bits_of(operands)..., 0}, values[MOST];
        for (int i = 0; i < statement.named; i++)
            values[i] = statement.names[i] < 0 ? statement.numbers[i] : given[statement.names[i]];
        known.run(line, values);
        for (int i = 0; i < known.results; i++) given[statement.names[i]] = values[i];
        int i = 0;
        auto put = [&](auto& operand) {
            if constexpr (!std::is_const_v<std::remove_reference_t<decltype(operand)>>)
                if (statement.written[i]) __builtin_memcpy(&operand, &given[i], sizeof operand);
            i++;
        };
        (put(operands), ...);
    }
}

}  // namespace fake_gpu
