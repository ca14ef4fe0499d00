// Everything that Go's scheduler does with goroutines: some compute, a pair plays ping-pong over
// channels, one allocates so that garbage is collected, one reads with system calls, and one's stack
// grows again and again. The clocks are wall-clock times, since goroutines move between threads.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var stopped atomic.Bool

// Calls nothing and keeps nothing: Go gives it no frame.
//
//go:noinline
func leaf(rounds int64) uint64 {
	x := uint64(rounds)
	for i := int64(0); i < rounds; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func compute(rounds int64) uint64 { return leaf(rounds) + 1 }

//go:noinline
func computing() {
	for !stopped.Load() {
		compute(100000)
	}
}

//go:noinline
func playing(in <-chan int, out chan<- int) {
	for !stopped.Load() {
		select {
		case x := <-in:
			out <- x + 1
		case <-time.After(time.Second):
		}
	}
}

type node struct {
	next *node
	data [6]uint64
}

var kept *node

//go:noinline
func allocate(count int) *node {
	var list *node
	for i := 0; i < count; i++ {
		list = &node{next: list}
	}
	return list
}

//go:noinline
func allocating() {
	for !stopped.Load() {
		kept = allocate(20000)
	}
}

//go:noinline
func reading() {
	buffer := make([]byte, 1<<16)
	file, err := syscall.Open("/dev/zero", syscall.O_RDONLY, 0)
	for err == nil && !stopped.Load() {
		_, err = syscall.Read(file, buffer)
	}
}

//go:noinline
func grow(depth int) int {
	var room [128]byte
	room[depth%128] = 1
	if depth == 0 {
		return 0
	}
	return grow(depth-1) + int(room[1])
}

//go:noinline
func growing() {
	for !stopped.Load() {
		done := make(chan int)
		go func() { done <- grow(200) }()
		<-done
	}
}

func main() {
	seconds := 120.0
	if len(os.Args) > 1 {
		seconds, _ = strconv.ParseFloat(os.Args[1], 64)
	}
	start := time.Now()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
		case <-time.After(time.Duration(seconds * 1e9)):
		}
		stopped.Store(true)
	}()
	fmt.Println("ready")
	there, back := make(chan int, 1), make(chan int, 1)
	there <- 0
	var all sync.WaitGroup
	for _, work := range []func(){
		computing, allocating, reading, growing,
		func() { playing(there, back) }, func() { playing(back, there) },
	} {
		work := work // Until Go 1.22 all would be the last.
		all.Add(1)
		go func() {
			defer all.Done()
			work()
		}()
	}
	all.Wait()
	fmt.Printf("{\"cpu_ns\": {\"all\": %d}}\n", time.Since(start).Nanoseconds())
}
