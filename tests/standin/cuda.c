/* A stand-in for NVIDIA's driver library: device memory is host memory, copies happen at once, kernels do nothing.
 *
 * It answers what Numba's launches, contexts, copies, streams and events ask for, counts, and refuses what a real driver
 * would refuse: calls without a context, grids beyond the limits, allocations beyond the memory there is, copies beyond
 * what was allocated, streams, events and memory of another GPU than the context's.  What is allocated holds garbage:
 * NaN to floats.
 *
 * STANDIN_GPUS         how many there are (1)
 * STANDIN_MEMORY       bytes of each (80 GiB)
 * STANDIN_FAULT        CALL:N; from the N-th call of that function on every call fails with error 700, as after an
 *                      illegal access (never); a launch is "launch"
 * STANDIN_FAULT_ONCE   a file: of several processes only the one that makes it fails (all)
 * STANDIN_ALLOCATIONS  how many succeed, of the device and pinned; the others find no memory (all)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_FOUND = 500,
       ILLEGAL_ADDRESS = 700, MOST_GPUS = 16, MOST_CONTEXTS = 4096, HEADER = 256, MOST_BLOCKS = 65535 };

#define COUNTERS(COUNT) \
    COUNT(launches) COUNT(bad_grids) COUNT(without_context) COUNT(allocations) COUNT(frees) COUNT(held_bytes) \
    COUNT(most_bytes) COUNT(pinned) COUNT(pinned_frees) COUNT(copies_up) COUNT(copies_down) COUNT(bytes_up) \
    COUNT(bytes_down) COUNT(events) COUNT(streams) COUNT(waits) COUNT(synchronizations) COUNT(pushes) \
    COUNT(deepest_stack) COUNT(foreign) COUNT(beyond)
#define DECLARE(name) static atomic_long name;
COUNTERS(DECLARE)

static _Thread_local void *stack_[MOST_CONTEXTS];
static _Thread_local int depth;
static char contexts[MOST_GPUS]; /* the context of GPU i is the address of its i-th byte */
static atomic_long held[MOST_GPUS], handles = 0x10000;

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}
static int gpus(void) { /* those that CUDA_VISIBLE_DEVICES leaves: up to the first that is not there */
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int there = (int)setting("STANDIN_GPUS", 1), count = 0;
    if (!visible) return there;
    for (char *end; *visible; visible = end + (*end == ',')) {
        long index = strtol(visible, &end, 10);
        if (end == visible || index < 0 || index >= there) break;
        count++;
    }
    return count;
}
static long memory(void) { return setting("STANDIN_MEMORY", 80L << 30); }
static int current(void) { return (int)((char *)stack_[depth - 1] - contexts); }
static void *handle(void) { return (void *)(handles += 16); }
static void *handle_here(void) { return (void *)((current() + 1L) << 40 | (handles += 16)); } /* of this GPU */
static int is_foreign(const void *handle) { /* the default stream, and what is no handle of ours, belong to all */
    long owner = (long)handle >> 40;
    if (owner < 1 || owner > MOST_GPUS || owner == current() + 1) return 0;
    foreign++;
    return 1;
}
static void raise_to(atomic_long *most, long value) {
    if (value > *most) *most = value;
}

/* every function that a fault can begin in, with its calls so far */
typedef struct call { const char *name; atomic_long count; struct call *next; } call;
static _Atomic(call *) calls;
static atomic_int faulty;

static int begins_fault(const char *name, long nth) {
    const char *asked = getenv("STANDIN_FAULT"), *once = getenv("STANDIN_FAULT_ONCE");
    size_t length = strlen(name);
    if (!asked || strncmp(asked, name, length) || asked[length] != ':' || nth < atol(asked + length + 1)) return 0;
    int made = once ? open(once, O_CREAT | O_EXCL, 0600) : 0;
    if (once && made >= 0) close(made);
    return made >= 0;
}
static int is_faulty(call *here) {
    long nth = ++here->count;
    if (nth == 1) {
        here->next = calls;
        while (!atomic_compare_exchange_weak(&calls, &here->next, here)) {}
    }
    if (!faulty && begins_fault(here->name, nth)) faulty = 1;
    return faulty;
}
#define ALIVE do { static call here = {__func__}; if (is_faulty(&here)) return ILLEGAL_ADDRESS; } while (0)
#define CHECK do { ALIVE; if (!depth) { without_context++; return INVALID_CONTEXT; } } while (0)
static int is_refused(void) { return allocations + pinned >= setting("STANDIN_ALLOCATIONS", 1L << 60); }

/* devices */
int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = gpus(); return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < gpus() ? OK : INVALID_DEVICE; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "stand-in"); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = memory(); return OK; }
int cuDeviceGetUuid(char *uuid, int device) { memset(uuid, device + 1, 16); return OK; }
int cuDeviceGetUuid_v2(char *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    static const struct { int attribute, value; } known[] = {
        {75, 9}, {76, 0},                                           /* compute capability */
        {10, 32}, {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},         /* warp, threads of a block */
        {5, 2147483647}, {6, MOST_BLOCKS}, {7, MOST_BLOCKS},        /* blocks of a grid */
        {16, 132}, {8, 49152}, {33, 0}, {50, 0},                    /* multiprocessors, shared memory, PCI */
    };
    *value = attribute == 34 ? device : 1;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].attribute == attribute) *value = known[i].value;
    return OK;
}

/* contexts: a stack for each thread */
int cuDevicePrimaryCtxRetain(void **context, int device) { ALIVE; *context = &contexts[device]; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return OK; }
int cuCtxGetCurrent(void **context) { *context = depth ? stack_[depth - 1] : NULL; return OK; }
int cuCtxPushCurrent_v2(void *context) { ALIVE;
    if (depth == MOST_CONTEXTS) return INVALID_VALUE;
    stack_[depth++] = context;
    pushes++;
    raise_to(&deepest_stack, depth);
    return OK;
}
int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    depth--;
    if (context) *context = stack_[depth];
    return OK;
}
int cuCtxSetCurrent(void *context) {
    if (!context) return depth ? cuCtxPopCurrent_v2(NULL) : OK;
    if (!depth) depth = 1;
    stack_[depth - 1] = context;
    return OK;
}
int cuCtxGetDevice(int *device) {
    if (!depth) return INVALID_CONTEXT;
    *device = current();
    return OK;
}
int cuCtxSynchronize(void) { CHECK; synchronizations++; return OK; }
int cuCtxGetStreamPriorityRange(int *least, int *most) { *least = *most = 0; return OK; }

/* memory */
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CHECK;
    *total = memory();
    *free_bytes = *total - held[current()];
    return OK;
}
/* what is allocated: each block begins with its size and its GPU */
static long *blocks[1 << 16];
static int most_blocks;
static atomic_flag looking = ATOMIC_FLAG_INIT;

static void put_block(const long *old, long *new) {
    while (atomic_flag_test_and_set(&looking)) {}
    int i = 0;
    while (i < most_blocks && blocks[i] != old) i++;
    if (i == most_blocks) most_blocks++;
    blocks[i] = new;
    atomic_flag_clear(&looking);
}
static void remember(long *block) { put_block(NULL, block); }
static void forget(const long *block) { put_block(block, NULL); }
static int owner_of(uint64_t address, size_t bytes) { /* the GPU, -1 where that is not within a block */
    int owner = -1;
    while (atomic_flag_test_and_set(&looking)) {}
    for (int i = 0; i < most_blocks && owner < 0; i++) {
        uint64_t begin = (uint64_t)blocks[i] + HEADER;
        if (blocks[i] && begin <= address && address + bytes <= begin + (uint64_t)blocks[i][0]) owner = (int)blocks[i][1];
    }
    atomic_flag_clear(&looking);
    return owner;
}
static int is_beyond(uint64_t address, size_t bytes) {
    int owner = owner_of(address, bytes);
    if (owner < 0) beyond++;
    else if (owner != current()) foreign++;
    return owner != current();
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    CHECK;
    if (is_refused() || held[current()] + (long)bytes > memory()) return OUT_OF_MEMORY;
    long *block = malloc(bytes + HEADER);
    if (!block) return OUT_OF_MEMORY;
    memset(block, 0xff, bytes + HEADER);
    block[0] = (long)bytes;
    block[1] = current();
    remember(block);
    held[current()] += (long)bytes;
    held_bytes += (long)bytes;
    raise_to(&most_bytes, held_bytes);
    allocations++;
    *address = (uint64_t)block + HEADER;
    return OK;
}
int cuMemFree_v2(uint64_t address) {
    CHECK;
    long *block = (long *)(address - HEADER);
    forget(block);
    held[block[1]] -= block[0];
    held_bytes -= block[0];
    frees++;
    free(block);
    return OK;
}
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    CHECK;
    if (is_refused()) return OUT_OF_MEMORY;
    pinned++;
    *address = malloc(bytes + 64);
    return OK;
}
int cuMemFreeHost(void *address) { CHECK; pinned_frees++; free(address); return OK; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    CHECK;
    if (is_foreign(stream) || is_beyond(to, bytes)) return INVALID_VALUE;
    memcpy((void *)to, from, bytes);
    copies_up++;
    bytes_up += (long)bytes;
    return OK;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    CHECK;
    if (is_foreign(stream) || is_beyond(from, bytes)) return INVALID_VALUE;
    memcpy(to, (void *)from, bytes);
    copies_down++;
    bytes_down += (long)bytes;
    return OK;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    CHECK;
    if (is_foreign(stream) || is_beyond(to, bytes) || is_beyond(from, bytes)) return INVALID_VALUE;
    memcpy((void *)to, (void *)from, bytes);
    return OK;
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, NULL); }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, NULL); }
int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, NULL); }
int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) { CHECK; memset((void *)to, value, bytes); return OK; }
int cuPointerGetAttribute(void *value, int attribute, uint64_t address) {
    int owner = owner_of(address, 0);
    if (attribute != 1) memset(value, 0, 4); /* 1: the context, by which a launch finds its own */
    else if (owner >= 0) *(void **)value = &contexts[owner];
    return OK;
}

/* streams and events: everything is done at once, so there is never anything to wait for */
int cuStreamCreate(void **stream, unsigned flags) { CHECK; streams++; *stream = handle_here(); return OK; }
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return cuStreamCreate(stream, flags); }
int cuStreamDestroy_v2(void *stream) { ALIVE; return OK; }
int cuStreamSynchronize(void *stream) { CHECK; synchronizations++; return OK; }
int cuStreamQuery(void *stream) { CHECK; return OK; }
int cuStreamGetCtx(void *stream, void **context) { *context = depth ? stack_[depth - 1] : &contexts[0]; return OK; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { CHECK; waits++; return OK; }
int cuEventCreate(void **event, unsigned flags) { CHECK; events++; *event = handle_here(); return OK; }
int cuEventDestroy_v2(void *event) { ALIVE; return OK; }
int cuEventRecord(void *event, void *stream) { CHECK; return is_foreign(event) || is_foreign(stream) ? INVALID_VALUE : OK; }
int cuEventSynchronize(void *event) { CHECK; synchronizations++; return OK; }
int cuEventQuery(void *event) { CHECK; return OK; }
int cuEventElapsedTime(float *milliseconds, void *from, void *to) { *milliseconds = 1; return OK; }
int cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) { return cuEventElapsedTime(milliseconds, from, to); }

/* code: loaded, but never run */
int cuLibraryLoadData(void **library, const void *code, void *a, void *b, unsigned n, void *c, void *d, unsigned m) { ALIVE; *library = handle(); return OK; }
int cuLibraryUnload(void *library) { return OK; }
int cuLibraryGetKernel(void **kernel, void *library, const char *name) { ALIVE; *kernel = handle(); return OK; }
int cuLibraryGetModule(void **module, void *library) { *module = handle(); return OK; }
int cuKernelGetFunction(void **function, void *kernel) { ALIVE; *function = kernel; return OK; }
int cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) { *value = attribute == 0 ? 1024 : 16; return OK; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 16; return OK; }
int cuModuleLoadDataEx(void **module, const void *image, unsigned n, void *options, void *values) { ALIVE; *module = handle(); return OK; }
int cuModuleLoadData(void **module, const void *image) { ALIVE; *module = handle(); return OK; }
int cuModuleGetFunction(void **function, void *module, const char *name) { ALIVE; *function = handle(); return OK; }
int cuModuleGetGlobal_v2(uint64_t *address, size_t *bytes, void *module, const char *name) { return NOT_FOUND; }
int cuOccupancyMaxPotentialBlockSize(int *grid, int *block, void *f, void *g, size_t s, int limit) { *grid = 132; *block = 256; return OK; }
static int launch(unsigned x, unsigned y, unsigned z, const void *stream) {
    CHECK;
    if (is_foreign(stream)) return INVALID_VALUE;
    launches++;
    if (x && y && z && y <= MOST_BLOCKS && z <= MOST_BLOCKS) return OK;
    bad_grids++;
    return INVALID_VALUE;
}
int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) { return launch(x, y, z, stream); }
int cuLaunchKernelEx(const unsigned *configuration, void *f, void **arguments, void **extra) { return launch(configuration[0], configuration[1], configuration[2], *(void *const *)(configuration + 8)); }

/* errors and entry points */
int cuGetErrorName(int error, const char **name) {
    *name = error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN";
    return OK;
}
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }
static int nothing(void) { return OK; }
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
    static const char *const suffixes[] = {"_v2", "", "_v3"};
    void *self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    char full[128];
    *function = (void *)nothing;
    for (int i = 2; i >= 0 && self; i--) {
        snprintf(full, sizeof full, "%s%s", name, suffixes[i]);
        void *known = dlsym(self, full);
        if (known) *function = known;
    }
    if (found) *found = 0;
    return OK;
}
int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) { return cuGetProcAddress_v2(name, function, version, flags, NULL); }

/* what was counted, as JSON */
void standin_report(char *text, size_t length) {
    size_t at = (size_t)snprintf(text, length, "{\"gpus\": %d", gpus());
#define WRITE(name) at += (size_t)snprintf(text + at, at < length ? length - at : 0, ", \"%s\": %ld", #name, (long)name);
    COUNTERS(WRITE)
    for (call *of = calls; of; of = of->next)
        at += (size_t)snprintf(text + at, at < length ? length - at : 0, ", \"%s\": %ld", of->name, (long)of->count);
    snprintf(text + at, at < length ? length - at : 0, "}");
}
