"""What each known mistake computes, as tables: {kernel or op: {what it is in words: the wrong result of a call}}."""
