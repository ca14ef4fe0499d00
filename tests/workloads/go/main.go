// 70 % of the time in a method, 30 % in a generic function, on one goroutine bound to its thread.
package main

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

// Ledger has the method that most of the time goes to.
type Ledger struct{ sum uint64 }

// The loop calls a function now and then: Go gives a leaf function no frame, and frame pointers
// then lose its caller.
//
//go:noinline
func pause(x uint64) uint64 { return x + 1 }

//go:noinline
func (l *Ledger) Heavy(rounds int64) {
	x := l.sum
	for i := int64(0); i < rounds; i++ {
		x = x*6364136223846793005 + 1442695040888963407
		if i&0xffff == 0 {
			x = pause(x)
		}
	}
	l.sum = x
}

//go:noinline
func light[T uint64 | uint32](start T, rounds int64) T {
	x := start
	for i := int64(0); i < rounds; i++ {
		x = x*69069 + 1
		if i&0xffff == 0 {
			x += T(pause(1))
		}
	}
	return x
}

//go:noinline
func heavyCaller(l *Ledger, rounds int64) {
	l.Heavy(rounds)
	l.sum++
}

//go:noinline
func lightCaller(l *Ledger, rounds int64) {
	l.sum += light(l.sum, rounds)
}

func roundsPerMs(l *Ledger, f func(*Ledger, int64)) int64 {
	const rounds = 2000000
	best := int64(1 << 62)
	for i := 0; i < 5; i++ {
		start := threadCPU()
		f(l, rounds)
		best = min(best, threadCPU()-start)
	}
	return rounds * 1000000 / max(best, 1)
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

	ledger := &Ledger{sum: 1}
	heavyPerMs := roundsPerMs(ledger, heavyCaller)
	lightPerMs := roundsPerMs(ledger, lightCaller)
	fmt.Println("ready")
	var heavyNs, lightNs int64
	for !stopped.Load() && time.Now().Before(end) {
		start := threadCPU()
		heavyCaller(ledger, 70*heavyPerMs)
		middle := threadCPU()
		lightCaller(ledger, 30*lightPerMs)
		heavyNs += middle - start
		lightNs += threadCPU() - middle
	}
	fmt.Printf("{\"cpu_ns\": {\"heavy\": %d, \"light\": %d}}\n", heavyNs, lightNs)
}
