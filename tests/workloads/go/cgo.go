// Go calls C, which works, and calls Go back, which works too.
package main

/*
#include <stdint.h>

extern uint64_t goWork(uint64_t rounds);

static __attribute__((noipa)) uint64_t c_leaf(uint64_t rounds) {
    uint64_t x = rounds | 1;
    for (uint64_t i = 0; i < rounds; i++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        __asm__ volatile("" : "+r"(x));
    }
    return x;
}

static __attribute__((noipa)) uint64_t c_work(uint64_t rounds) {
    uint64_t x = c_leaf(rounds);
    __asm__ volatile("" : "+r"(x));
    return x;
}

static __attribute__((noipa)) uint64_t c_calls_go(uint64_t rounds) {
    uint64_t x = goWork(rounds);
    __asm__ volatile("" : "+r"(x));
    return x;
}
*/
import "C"

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const threadCPUTime = 3 // CLOCK_THREAD_CPUTIME_ID

func threadCPU() int64 {
	var t syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, threadCPUTime, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano()
}

// Calls nothing and keeps nothing: Go gives it no frame.
//
//go:noinline
func leaf(rounds uint64) uint64 {
	x := rounds
	for i := uint64(0); i < rounds; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//export goWork
//go:noinline
func goWork(rounds C.uint64_t) C.uint64_t {
	x := uint64(rounds)
	// Often enough to be seen: it takes less than a microsecond.
	const yields = 100
	for i := 0; i < yields; i++ {
		x += leaf(uint64(rounds) / yields)
		// Leaves the goroutine for the scheduler, above frames of C.
		runtime.Gosched()
	}
	return C.uint64_t(x)
}

//go:noinline
func work(rounds uint64) uint64 { return uint64(C.c_work(C.uint64_t(rounds))) + 1 }

//go:noinline
func workThere(rounds uint64) uint64 { return uint64(C.c_calls_go(C.uint64_t(rounds))) + 1 }

func roundsPerMs() uint64 {
	const rounds = 2000000
	best := int64(1 << 62)
	for i := 0; i < 5; i++ {
		start := threadCPU()
		leaf(rounds)
		if spent := threadCPU() - start; spent > 0 && spent < best {
			best = spent
		}
	}
	return rounds * 1000000 / uint64(best)
}

func main() {
	runtime.LockOSThread()
	seconds := 120.0
	if len(os.Args) > 1 {
		seconds, _ = strconv.ParseFloat(os.Args[1], 64)
	}
	end := time.Now().Add(time.Duration(seconds * 1e9))
	var stopped atomic.Bool
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		stopped.Store(true)
	}()
	perMs := roundsPerMs()
	fmt.Println("ready")
	var inC, inGo int64
	for !stopped.Load() && time.Now().Before(end) {
		start := threadCPU()
		work(20 * perMs)
		middle := threadCPU()
		workThere(20 * perMs)
		inC += middle - start
		inGo += threadCPU() - middle
	}
	fmt.Printf("{\"cpu_ns\": {\"c_leaf\": %d, \"leaf\": %d}}\n", inC, inGo)
}
