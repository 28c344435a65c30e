/* Tells which of the compiled copies this CPU can run. This file is compiled without the flags of an instruction set,
 * so that it runs on every CPU. */
#include <string.h>

int msda_can_run(const char *instructions) {
    if (!strcmp(instructions, "baseline")) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(instructions, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(instructions, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return 0;
}
