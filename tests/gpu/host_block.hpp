// How a block's threads run on a host: as threads of the system (or, with DML_FIBERS, as fibers of one), which meet at
// barriers. Blocks run one after the other, so that a block's shared memory can be static storage.
//
// Whatever CUDA leaves undefined and a test could miss ends the process with a line that says so: a barrier that some
// threads do not reach, a warp's operation that only a part of it takes part in, shared memory written past its end.
#pragma once

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <vector>
#if defined(DML_FIBERS) && !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace host {

constexpr unsigned LANES = 32;
constexpr size_t CANARY_BYTES = 256;
constexpr unsigned char POISON = 0xff;  // not a number as a float, -1 as an integer
#ifdef __SANITIZE_THREAD__
constexpr long DEADLINE_S = 300;  // threads that are watched are slow
#else
constexpr long DEADLINE_S = 60;
#endif

struct Index {
    unsigned x, y, z;
};

struct Launch {  // as host_device.py lays it out
    Index grid, block;
    unsigned long long shared_bytes;
};

struct Slot {
    alignas(16) unsigned char bytes[16];
    unsigned operation;
};

#ifdef DML_FIBERS
using Count = unsigned;
#else
using Count = std::atomic<unsigned>;
#endif

struct Barrier {
    Count arrived{0}, generation{0}, left{0};
    unsigned expected = 0;
};

struct Warp {
    Barrier barrier;
    Slot slots[2][LANES];
};

struct Thread {
    Index thread, block;
    unsigned number, turn;
    Warp* warp;
    // Fibers only: where it stands, and what it waits for.
    Barrier* awaited;
    unsigned generation;
    bool done;
    void* context;
};

struct Block {
    Launch launch;
    unsigned threads = 0;
    Barrier barrier, between;
    std::vector<Warp> warps;
    unsigned char* shared = nullptr;
    void (*body)(void*) = nullptr;
    void* arguments = nullptr;
};

inline Block* block = nullptr;
#ifdef DML_FIBERS
inline Thread* self = nullptr;
#else
inline thread_local Thread* self = nullptr;
#endif

[[noreturn]] inline void fail(const char* why) {
    if (self)
        fprintf(stderr, "\nhost CUDA: block (%u, %u, %u), thread (%u, %u, %u): %s\n", self->block.x, self->block.y,
                self->block.z, self->thread.x, self->thread.y, self->thread.z, why);
    else
        fprintf(stderr, "\nhost CUDA: %s\n", why);
    fflush(stderr);
    abort();
}

inline void missed(const Barrier& barrier) {
    fail(&barrier == &block->barrier ? "some threads of the block end without reaching this __syncthreads()"
                                     : "some lanes of the warp end without taking part in this operation");
}

#ifdef DML_FIBERS

void yield();

inline void meet(Barrier& barrier) {
    unsigned generation = barrier.generation;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    if (barrier.left) missed(barrier);
    self->awaited = &barrier;
    self->generation = generation;
    yield();
}

#else

inline bool futex_wait(std::atomic<unsigned>& word, unsigned value, long seconds) {
    timespec limit{seconds, 0};
    long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, seconds ? &limit : nullptr, nullptr, 0);
    return result == 0 || errno != ETIMEDOUT;
}

inline void futex_wake(std::atomic<unsigned>& word) {
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}

inline void meet(Barrier& barrier) {
    unsigned generation = barrier.generation;
    if (barrier.arrived.fetch_add(1) + 1 == barrier.expected) {
        barrier.arrived = 0;
        barrier.generation.fetch_add(1);
        futex_wake(barrier.generation);
        return;
    }
    // Who has left had passed all of its barriers, so this one's generation is looked at second.
    if (barrier.left && barrier.generation == generation) missed(barrier);
    while (barrier.generation == generation)
        if (!futex_wait(barrier.generation, generation, DEADLINE_S) && barrier.generation == generation)
            fail(&barrier == &block->barrier ? "waited in vain at __syncthreads() for the block's other threads"
                                             : "waited in vain for the warp's other lanes");
}

#endif

inline void leave(Barrier& barrier) {
    barrier.left += 1;
    if (barrier.arrived != 0) missed(barrier);
}

constexpr unsigned operation(const char* name) {
    unsigned hash = 0;
    for (; *name; ++name) hash = hash * 31 + (unsigned char)*name;
    return hash;
}

// What every lane of the warp gave, when all have given it: valid until this thread's next such call.
template <class T>
const Slot* gather(unsigned mask, T value, unsigned operation) {
    static_assert(sizeof(T) <= sizeof(Slot::bytes));
    if (mask != 0xffffffffu) fail("a warp's operation with a mask that is not all of its lanes");
    Slot* slots = self->warp->slots[self->turn++ % 2];
    Slot& own = slots[self->number % LANES];
    memcpy(own.bytes, &value, sizeof(T));
    own.operation = operation;
    meet(self->warp->barrier);
    if (slots[0].operation != operation) fail("lanes of a warp are at different operations");
    return slots;
}

template <class T>
T given(const Slot* slots, unsigned lane) {
    T value;
    memcpy(&value, slots[lane].bytes, sizeof(T));
    return value;
}

inline void place(Thread& thread, unsigned number) {
    const Index& size = block->launch.block;
    thread.number = number;
    thread.turn = 0;
    thread.thread = {number % size.x, number / size.x % size.y, number / size.x / size.y};
    thread.warp = &block->warps[number / LANES];
}

inline Index block_at(unsigned long long number) {
    const Index& grid = block->launch.grid;
    return {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
}

inline void begin_block() {
    memset(block->shared, POISON, block->launch.shared_bytes + CANARY_BYTES);
    block->barrier.left = 0;
    for (Warp& warp : block->warps) warp.barrier.left = 0;
}

inline void end_block() {
    for (size_t i = 0; i < CANARY_BYTES; ++i)
        if (block->shared[block->launch.shared_bytes + i] != POISON)
            fail("the kernel wrote past the end of its dynamic shared memory");
}

#ifdef DML_FIBERS

constexpr size_t STACK_BYTES = 256 << 10;
inline std::vector<Thread> fibers;
inline std::vector<char*> stacks;
inline void* outside = nullptr;
inline unsigned running = 0;

inline void run_body() {
    block->body(block->arguments);
    leave(self->warp->barrier);
    leave(block->barrier);
    self->done = true;
    --running;
    yield();
}

#ifdef __x86_64__
extern "C" void dml_switch_fiber(void** from, void* to);
asm(R"(
    .text
    .type dml_switch_fiber, @function
dml_switch_fiber:
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
)");

inline void* new_context(char* stack) {
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&run_body);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    return top;
}

inline void switch_fiber(void*& from, void* to) { dml_switch_fiber(&from, to); }
#else
inline void* new_context(char* stack) {
    // It lies at the stack's lower end, where no thread gets to.
    ucontext_t* context = reinterpret_cast<ucontext_t*>(stack + 4096);
    getcontext(context);
    context->uc_stack.ss_sp = stack + 16384;
    context->uc_stack.ss_size = STACK_BYTES - 16384;
    context->uc_link = nullptr;
    makecontext(context, run_body, 0);
    return context;
}

inline void switch_fiber(void*& from, void* to) {
    static ucontext_t main_context;
    if (!from) from = &main_context;
    swapcontext(static_cast<ucontext_t*>(from), static_cast<ucontext_t*>(to));
}
#endif

// Go on with the next thread that can, in turn; outside when there is none left.
inline void yield() {
    Thread* own = self;
    unsigned next = own->number;
    for (unsigned i = 0; i < block->threads; ++i) {
        if (++next == block->threads) next = 0;
        Thread& other = fibers[next];
        if (other.done || (other.awaited && other.awaited->generation == other.generation)) continue;
        if (&other == own) return;
        self = &other;
        other.awaited = nullptr;
        switch_fiber(own->context, other.context);
        return;
    }
    if (running) fail("the block's threads wait for one another at different barriers");
    switch_fiber(own->context, outside);
}

inline void run_blocks() {
    if (fibers.size() < block->threads) fibers.resize(block->threads);
    while (stacks.size() < block->threads) {
        void* memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for the threads' stacks");
        mprotect(memory, 4096, PROT_NONE);
        stacks.push_back(static_cast<char*>(memory));
    }
    const Index& grid = block->launch.grid;
    for (unsigned long long at = 0; at < 1ull * grid.x * grid.y * grid.z; ++at) {
        begin_block();
        for (unsigned number = 0; number < block->threads; ++number) {
            Thread& fiber = fibers[number];
            fiber = {};
            place(fiber, number);
            fiber.block = block_at(at);
            fiber.context = new_context(stacks[number]);
        }
        running = block->threads;
        self = &fibers[0];
        switch_fiber(outside, self->context);
        end_block();
        self = nullptr;
    }
}

#else

struct Pool;

struct Worker {
    std::atomic<unsigned> orders{0};
    unsigned number;
    Pool* pool;
    void (*job)(unsigned);
};

// One for all libraries of a process (the symbol is unique); its threads sleep between launches until the process ends.
struct __attribute__((visibility("default"))) Pool {
    std::vector<Worker*> workers;
    std::atomic<unsigned> unfinished{0};
    pid_t process = getpid();
};
inline __attribute__((visibility("default"))) Pool* pool = nullptr;

inline void* work(void* argument) {
    Worker& worker = *static_cast<Worker*>(argument);
    std::atomic<unsigned>& unfinished = worker.pool->unfinished;
    for (unsigned done = 0;; ++done) {
        while (worker.orders == done) futex_wait(worker.orders, done, 0);
        worker.job(worker.number);
        if (unfinished.fetch_sub(1) == 1) futex_wake(unfinished);
    }
}

inline void one_thread(unsigned number) {
    Thread thread{};
    place(thread, number);
    self = &thread;
    const Index& grid = block->launch.grid;
    for (unsigned long long at = 0; at < 1ull * grid.x * grid.y * grid.z; ++at) {
        thread.block = block_at(at);
        if (number == 0) begin_block();
        meet(block->between);
        block->body(block->arguments);
        leave(thread.warp->barrier);
        leave(block->barrier);
        meet(block->between);
        if (number == 0) end_block();
    }
    self = nullptr;
}

inline void run_blocks() {
    if (!pool || pool->process != getpid()) pool = new Pool;  // a fork has no threads but one
    while (pool->workers.size() < block->threads) {
        Worker* worker = new Worker;
        worker->number = unsigned(pool->workers.size());
        worker->pool = pool;
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, 512 << 10);
        if (pthread_create(&thread, &attributes, work, worker)) fail("no more threads can be started");
        pthread_attr_destroy(&attributes);
        pthread_detach(thread);
        pool->workers.push_back(worker);
    }
    std::atomic<unsigned>& unfinished = pool->unfinished;
    unfinished = block->threads;
    for (unsigned i = 0; i < block->threads; ++i) {
        Worker& worker = *pool->workers[i];
        worker.job = one_thread;
        worker.orders.fetch_add(1);
        futex_wake(worker.orders);
    }
    for (unsigned left; (left = unfinished) != 0;) futex_wait(unfinished, left, 0);
}

#endif

// Run a kernel's body on all threads of all blocks, and return when they have ended.
inline void run(const Launch& launch, void (*body)(void*), void* arguments) {
    Block current;
    current.launch = launch;
    current.threads = launch.block.x * launch.block.y * launch.block.z;
    if (current.threads % LANES || current.threads == 0 || current.threads > 1024)
        fail("a block has whole warps, and at most 1024 threads");
    current.warps = std::vector<Warp>(current.threads / LANES);
    current.barrier.expected = current.between.expected = current.threads;
    for (Warp& warp : current.warps) warp.barrier.expected = LANES;
    current.body = body;
    current.arguments = arguments;
    size_t bytes = (launch.shared_bytes + CANARY_BYTES + 255) / 256 * 256;
    current.shared = static_cast<unsigned char*>(aligned_alloc(256, bytes));
    block = &current;
    run_blocks();
    block = nullptr;
    free(current.shared);
}

}  // namespace host
