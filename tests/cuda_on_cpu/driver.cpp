// What llmcls, candle and cudarc call of CUDA's driver and of cuBLAS, on a CPU: a device whose kernels are
// src/kernels/cuda/*.cu compiled as C++, and whose memory is this process's. Queued work is done at once, but a copy
// from page-locked memory as late as can be: when it is waited for, or by the next work that is queued.
//
// New memory holds NaN, and what is written beyond its end is noticed when it is freed.

#include "emulation.h"

#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace emulation {
Thread *current;
Index block, block_size, grid_size;
char *dynamic_shared;
float exchanged[1024];
Given given[1024];

// Fibers: stacks, and a switch between them that keeps what the System V ABI wants kept.
extern "C" void emulation_switch(void **from, void *to);
asm(R"(
.text
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch, .-emulation_switch
)");

static void *scheduler;
typedef void (*Launcher)(void **);
static Launcher launcher;
static void **arguments;
const size_t STACK = 256 << 10;

static void yield(decltype(Thread::state) state) {
    current->state = state;
    emulation_switch(&current->stack_pointer, scheduler);
}
void wait_for_warp() { yield(Thread::AT_WARP_BARRIER); }
void wait_for_block() { yield(Thread::AT_BLOCK_BARRIER); }

struct Copy {
    void *to;
    const void *from;
    size_t bytes;
    bool is_there;
    size_t group;
};
static std::vector<Copy> started[1024];
static size_t groups[1024];

void begin_copy(void *to, const void *from, size_t bytes, bool is_there) {
    check((uintptr_t)to % bytes == 0 && (uintptr_t)from % bytes == 0, "a copy must start at a multiple of its size");
    memset(to, 0xFF, bytes);
    started[current->number].push_back({to, from, bytes, is_there, groups[current->number]});
}
// Those of groups below `end`; copies are in the order of their groups.
static void end_copies_of_groups(size_t end) {
    auto &copies = started[current->number];
    auto last = std::find_if(copies.begin(), copies.end(), [&](const Copy &copy) { return copy.group >= end; });
    for (auto copy = copies.begin(); copy != last; copy++) {
        if (copy->is_there) memcpy(copy->to, copy->from, copy->bytes);
        else memset(copy->to, 0, copy->bytes);
    }
    copies.erase(copies.begin(), last);
}
void end_copies() { end_copies_of_groups(groups[current->number] + 1); }
void end_group() { groups[current->number]++; }
void end_groups_before(size_t last) {
    size_t count = groups[current->number];
    end_copies_of_groups(count - std::min(count, last));
}

static void run_thread() {
    launcher(arguments);
    yield(Thread::DONE);
    abort();
}

static uint32_t random_number() {
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static void shuffle(std::vector<uint32_t> &order) {
    for (size_t i = order.size() - 1; i > 0; i--) std::swap(order[i], order[random_number() % (i + 1)]);
}

// A warp runs as far ahead of the others as barriers of the block let it, so that one that is missing is felt;
// warps, and the threads of one between its own barriers, come in random order.
static void run_block(uint32_t threads) {
    static std::vector<Thread> fibers(1024);
    static char *stacks = (char *)malloc(1024 * STACK);
    for (uint32_t i = 0; i < threads; i++) {
        void **top = (void **)(stacks + (i + 1) * STACK);
        // As after a call: the return address lies at 8 modulo 16.
        *--top = nullptr;
        *--top = (void *)run_thread;
        for (int kept = 0; kept < 6; kept++) *--top = nullptr;
        fibers[i] = {top, {i, 0, 0}, i, Thread::RUNNING};
    }
    // All threads wait at the same kind of barrier, or are done: they go on.
    auto release = [&](uint32_t first, uint32_t last, decltype(Thread::state) barrier) {
        bool is_complete = true, is_any = false;
        for (uint32_t i = first; i < last; i++) {
            is_complete &= fibers[i].state == barrier || fibers[i].state == Thread::DONE;
            is_any |= fibers[i].state == barrier;
        }
        for (uint32_t i = first; is_complete && i < last; i++)
            if (fibers[i].state == barrier) fibers[i].state = Thread::RUNNING;
        return is_complete && is_any;
    };
    std::vector<uint32_t> warps((threads + 31) / 32), lanes;
    std::iota(warps.begin(), warps.end(), 0);
    do {
        shuffle(warps);
        for (uint32_t warp : warps) {
            uint32_t first = 32 * warp, last = min(first + 32, threads);
            lanes.resize(last - first);
            std::iota(lanes.begin(), lanes.end(), first);
            do {
                shuffle(lanes);
                for (uint32_t i : lanes) {
                    if (fibers[i].state != Thread::RUNNING) continue;
                    current = &fibers[i];
                    emulation_switch(&scheduler, current->stack_pointer);
                }
            } while (release(first, last, Thread::AT_WARP_BARRIER));
        }
    } while (release(0, threads, Thread::AT_BLOCK_BARRIER));
    for (uint32_t i = 0; i < threads; i++)
        check(fibers[i].state == Thread::DONE && started[i].empty(),
              "threads wait at barriers that others do not reach, or end before their copies");
}

static std::map<uintptr_t, size_t> allocations;
static size_t used, most_used;
static std::recursive_mutex lock;
const size_t GUARD = 64;

static void check_guard(uintptr_t address, size_t bytes) {
    for (size_t i = 0; i < GUARD; i++)
        check(((uint8_t *)address)[bytes + i] == 0xA5, "a kernel wrote beyond the end of its buffer");
}

static std::map<std::string, Launcher> kernels();

// Page-locked memory, and copies from it that are queued: those up to `finished` of `queued` are done.
static std::map<uintptr_t, size_t> page_locked;
struct LateCopy {
    uintptr_t to, from;
    size_t bytes;
};
static std::deque<LateCopy> late;
static uint64_t queued, finished;

static bool is_page_locked(uintptr_t address) {
    auto after = page_locked.upper_bound(address);
    return after != page_locked.begin() && address < std::prev(after)->first + std::prev(after)->second;
}

static void finish(uint64_t up_to) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    for (; finished < up_to; finished++, late.pop_front())
        memcpy((void *)late.front().to, (void *)late.front().from, late.front().bytes);
}
static void finish() {
    std::lock_guard<std::recursive_mutex> guard(lock);
    finish(queued);
}
} // namespace emulation

using namespace emulation;

template <typename F, F f> struct Caller;
template <typename... A, void (*f)(A...)> struct Caller<void (*)(A...), f> {
    template <size_t... I> static void call(void **values, std::index_sequence<I...>) { f(*(A *)values[I]...); }
    static void launch(void **values) { call(values, std::index_sequence_for<A...>()); }
};

#include "kernels.inc"

extern "C" {
// The linker's names for the section of shared variables.
extern char __start_emulated_shared, __stop_emulated_shared;

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
// As a small card, so that running out of memory can be seen.
static size_t memory() {
    const char *limit = getenv("EMULATED_CUDA_MEMORY");
    return limit ? strtoull(limit, nullptr, 10) : (size_t)8 << 30;
}

// What another process takes after this one asked how much is free.
static size_t taken() {
    const char *bytes = getenv("EMULATED_CUDA_TAKEN");
    return bytes ? strtoull(bytes, nullptr, 10) : 0;
}

// A binary that was linked here for tests and is then used finds no device, rather than a very slow one.
int cuInit(unsigned) { return getenv("EMULATED_CUDA") ? SUCCESS : 100; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal == 0 ? SUCCESS : 101; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGetName(char *name, int length, int) { return snprintf(name, length, "Emulated CUDA"), SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 75: *value = getenv("EMULATED_CUDA_CAPABILITY") ? atoi(getenv("EMULATED_CUDA_CAPABILITY")) : 8; break;
    case 76: *value = 0; break;
    case 97: *value = 227 << 10; break; // shared memory of a block, opt-in: as on Hopper
    case 115: *value = 1; break;       // memory pools
    default: *value = 0;
    }
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = (void *)1, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuCtxGetCurrent(void **context) { return *context = (void *)1, SUCCESS; }
int cuCtxSynchronize() { return finish(), SUCCESS; }
int cuStreamCreate(void **stream, unsigned) { return *stream = (void *)2, SUCCESS; }
int cuStreamDestroy_v2(void *) { return SUCCESS; }
int cuStreamSynchronize(void *) { return finish(), SUCCESS; }
int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
// An event holds how many copies were queued before it.
int cuEventCreate(void **event, unsigned) { return *event = new uint64_t(0), SUCCESS; }
int cuEventDestroy_v2(void *event) { return delete (uint64_t *)event, SUCCESS; }
int cuEventRecord(void *event, void *) { return *(uint64_t *)event = queued, SUCCESS; }
int cuEventSynchronize(void *event) { return finish(*(uint64_t *)event), SUCCESS; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    *total = memory();
    *free = *total - min(used, *total);
    return SUCCESS;
}
int cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = (void *)4, SUCCESS; }
int cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
int cuMemPoolGetAttribute(void *, int attribute, void *value) {
    *(uint64_t *)value = attribute == 8 ? most_used : used;
    return SUCCESS;
}
int cuMemAllocAsync(uintptr_t *address, size_t bytes, void *) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (used + bytes + taken() > memory()) return OUT_OF_MEMORY;
    size_t whole = (bytes + GUARD + 255) / 256 * 256;
    *address = (uintptr_t)aligned_alloc(256, whole);
    if (!*address) return OUT_OF_MEMORY;
    memset((void *)*address, 0xFF, bytes);
    memset((char *)*address + bytes, 0xA5, GUARD);
    allocations[*address] = bytes;
    used += bytes;
    most_used = max(most_used, used);
    return SUCCESS;
}
int cuMemAlloc_v2(uintptr_t *address, size_t bytes) { return cuMemAllocAsync(address, bytes, nullptr); }
int cuMemFreeAsync(uintptr_t address, void *) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!address) return SUCCESS;
    finish();
    auto found = allocations.find(address);
    check(found != allocations.end(), "memory is freed that was not allocated");
    check_guard(address, found->second);
    used -= found->second;
    memset((void *)address, 0xFF, found->second);
    free((void *)address);
    allocations.erase(found);
    return SUCCESS;
}
int cuMemFree_v2(uintptr_t address) { return cuMemFreeAsync(address, nullptr); }
int cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (getenv("EMULATED_CUDA_LOCKS_NO_PAGES")) return OUT_OF_MEMORY;
    *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*address) return OUT_OF_MEMORY;
    page_locked[(uintptr_t)*address] = bytes;
    return SUCCESS;
}
int cuMemFreeHost(void *address) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto found = page_locked.find((uintptr_t)address);
    check(found != page_locked.end(), "page-locked memory is freed that was not allocated");
    for (const LateCopy &copy : late)
        check(copy.from < found->first || copy.from >= found->first + found->second,
              "page-locked memory is freed before the copy out of it is done");
    page_locked.erase(found);
    free(address);
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t n, void *) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (is_page_locked((uintptr_t)from)) return late.push_back({to, (uintptr_t)from, n}), queued++, SUCCESS;
    return finish(), memcpy((void *)to, from, n), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t n, void *) {
    return finish(), memcpy(to, (void *)from, n), SUCCESS;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t n, void *) {
    return finish(), memmove((void *)to, (void *)from, n), SUCCESS;
}
int cuMemsetD8Async(uintptr_t to, unsigned char value, size_t n, void *) {
    return finish(), memset((void *)to, value, n), SUCCESS;
}
// The stand-in for nvcc writes `// NAME` as the code of NAME.cu, and a module has the kernels of its file only.
int cuModuleLoadData(void **module, const void *code) {
    std::string text = (const char *)code;
    check(text.rfind("// ", 0) == 0, "a module that is no file's code");
    return *module = new std::string(text.substr(3, text.find('\n') - 3)), SUCCESS;
}
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    static const std::map<std::string, Launcher> all = kernels();
    auto found = all.find(*(const std::string *)module + "/" + name);
    if (found == all.end()) return NOT_FOUND;
    *function = (void *)found->second;
    return SUCCESS;
}
int cuFuncSetAttribute(void *, int, int) { return SUCCESS; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void *, void **values, void **) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!gx || !gy || gz != 1 || !bx || bx > 1024 || by != 1 || bz != 1) return INVALID_VALUE;
    finish();
    launcher = (Launcher)function;
    arguments = values;
    grid_size = {gx, gy, gz};
    block_size = {bx, by, bz};
    // New for each block, so that what a block reads it has written.
    std::vector<char> shared(shared_bytes + GUARD + 256);
    dynamic_shared = (char *)(((uintptr_t)shared.data() + 127) / 128 * 128);
    for (uint32_t y = 0; y < gy; y++)
        for (uint32_t x = 0; x < gx; x++) {
            block = {x, y, 0};
            memset(&__start_emulated_shared, 0xFF, &__stop_emulated_shared - &__start_emulated_shared);
            memset(dynamic_shared, 0xFF, shared_bytes);
            memset(dynamic_shared + shared_bytes, 0xA5, GUARD);
            run_block(bx);
            check_guard((uintptr_t)dynamic_shared, shared_bytes);
        }
    return SUCCESS;
}
int cuGetErrorName(int, const char **name) { return *name = "CUDA_ERROR", SUCCESS; }
int cuGetErrorString(int error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == 100 ? "no device" : error == 101 ? "invalid device ordinal" : "an error";
    return SUCCESS;
}

int cublasCreate_v2(void **handle) { return *handle = (void *)6, 0; }
int cublasDestroy_v2(void *) { return 0; }
int cublasSetStream_v2(void *, void *) { return 0; }
// The emulation sums in f32 whatever the mode.
int cublasSetMathMode(void *, int) { return 0; }
int curandCreateGenerator(void **generator, int) { return *generator = (void *)7, 0; }
int curandDestroyGenerator(void *) { return 0; }
int curandSetStream(void *, void *) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }

static float number(const void *from, int type, size_t at) {
    return type == 0 ? ((const float *)from)[at] : __bfloat162float(((const __nv_bfloat16 *)from)[at]);
}

// Column-major: c (m × n) = alpha · op(a) op(b) + beta · c. Types: 0 f32, 14 bf16. Operations: 0 N, 1 T.
int cublasGemmEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,
                 const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int, int) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    finish();
    check((type_a == 0 || type_a == 14) && (type_b == 0 || type_b == 14) && (type_c == 0 || type_c == 14) &&
              type_a == type_b && (type_c == type_a || type_c == 0),
          "cublasGemmEx has no such combination of types");
    float scale = *(const float *)alpha, kept = *(const float *)beta;
    std::vector<float> left((size_t)m * k), right((size_t)k * n);
    for (int i = 0; i < m; i++)
        for (int l = 0; l < k; l++)
            left[(size_t)i * k + l] = number(a, type_a, ta ? (size_t)i * lda + l : (size_t)l * lda + i);
    for (int j = 0; j < n; j++)
        for (int l = 0; l < k; l++)
            right[(size_t)j * k + l] = number(b, type_b, tb ? (size_t)l * ldb + j : (size_t)j * ldb + l);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            float sum = 0;
            for (int l = 0; l < k; l++) sum += left[(size_t)i * k + l] * right[(size_t)j * k + l];
            size_t at = (size_t)j * ldc + i;
            sum = scale * sum + (kept == 0.0f ? 0.0f : kept * number(c, type_c, at));
            if (type_c == 0) ((float *)c)[at] = sum;
            else ((__nv_bfloat16 *)c)[at] = __float2bfloat16(sum);
        }
    return 0;
}
}
