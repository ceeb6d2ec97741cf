"""Philox4x32-10, the counter-based generator of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

Each random number is a function of a key and a counter, so every thread can compute its own.
"""

# Put before the source of a kernel that draws random numbers. The bits are the same as on the CPU.
PHILOX = """
struct Words {
    unsigned int word[4];
};

// Words 4 * block .. 4 * block + 3 of the random stream of `key` (seed low, seed high, step, layer).
__device__ Words philox4x32(unsigned long long block, const unsigned int* key) {
    unsigned int c0 = (unsigned int)block, c1 = (unsigned int)(block >> 32), c2 = key[2], c3 = key[3];
    unsigned int k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        unsigned long long p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;  // the paper's multipliers
        c0 = (unsigned int)(p1 >> 32) ^ c1 ^ k0;
        c1 = (unsigned int)p1;
        c2 = (unsigned int)(p0 >> 32) ^ c3 ^ k1;
        c3 = (unsigned int)p0;
        k0 += 0x9E3779B9u;  // the golden ratio, and sqrt(3) - 1
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}
"""
