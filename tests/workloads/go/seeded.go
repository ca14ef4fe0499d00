// Chains of calls that a seed decides: eight functions with frames of different shapes call one
// another in an order that is different in each of twelve chains, down to a leaf that has no frame.
// The program prints its chains before it is ready. They run on a goroutine of their own.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
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

// The same generator in every language.
type seed uint64

func (s *seed) next(below uint64) uint64 {
	*s = *s*6364136223846793005 + 1442695040888963407
	return uint64(*s>>33) % below
}

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

type side interface {
	turn(chain []byte, rounds int64) uint64
}

type left struct{ sum uint64 }

type right [40]uint64

//go:noinline
func (l *left) turn(chain []byte, rounds int64) uint64 {
	l.sum += goOn(chain, rounds)
	return l.sum
}

//go:noinline
func (r right) turn(chain []byte, rounds int64) uint64 {
	return goOn(chain, rounds) + r[7]
}

//go:noinline
func bare(chain []byte, rounds int64) uint64 { return goOn(chain, rounds) + 1 }

//go:noinline
func roomy(chain []byte, rounds int64) uint64 {
	var room [6000]byte
	room[len(chain)] = 1
	result := goOn(chain, rounds)
	return result + uint64(room[rounds%6000])
}

//go:noinline
func deferring(chain []byte, rounds int64) (result uint64) {
	defer func() { result++ }()
	return goOn(chain, rounds)
}

//go:noinline
func generic[T uint64 | uint32](chain []byte, rounds int64, more T) T {
	return T(goOn(chain, rounds)) + more
}

//go:noinline
func call(step func(more uint64) uint64) uint64 { return step(2) + 1 }

//go:noinline
func applied(chain []byte, rounds int64) uint64 {
	return call(func(more uint64) uint64 { return goOn(chain, rounds) + more })
}

//go:noinline
func many(a, b, c, d, e, f, g, h, i, j, k uint64, chain []byte, rounds int64) (uint64, uint64, error) {
	return goOn(chain, rounds), a + b + c + d + e + f + g + h + i + j + k, nil
}

var sides = []side{&left{}, &right{}}

//go:noinline
func goOn(chain []byte, rounds int64) uint64 {
	if len(chain) == 0 {
		return leaf(rounds) + 1
	}
	rest := chain[1:]
	switch chain[0] {
	case 0:
		return bare(rest, rounds)
	case 1:
		return roomy(rest, rounds)
	case 2:
		return sides[0].turn(rest, rounds)
	case 3:
		return right{}.turn(rest, rounds)
	case 4:
		return deferring(rest, rounds)
	case 5:
		return uint64(generic(rest, rounds, uint32(7)))
	case 6:
		return applied(rest, rounds)
	}
	result, more, _ := many(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, rest, rounds)
	return result + more
}

var names = []string{
	"main.bare",
	"main.roomy",
	"main.(*left).turn",
	"main.right.turn",
	"main.deferring",
	"main.generic[…",
	"main.applied > main.call > main.applied.func1",
	"main.many",
}

//go:noinline
func run(chain []byte, rounds int64) uint64 { return goOn(chain, rounds) + 1 }

func roundsPerMs() int64 {
	const rounds = 2000000
	best := int64(1 << 62)
	for i := 0; i < 5; i++ {
		start := threadCPU()
		leaf(rounds)
		if spent := threadCPU() - start; spent > 0 && spent < best {
			best = spent
		}
	}
	return rounds * 1000000 / best
}

func argument(at int, otherwise float64) float64 {
	if len(os.Args) > at {
		value, _ := strconv.ParseFloat(os.Args[at], 64)
		return value
	}
	return otherwise
}

func makeChains(s seed) [][]byte {
	chains := make([][]byte, 12)
	for i := range chains {
		chain := make([]byte, 3+s.next(22))
		for j := range chain {
			chain[j] = byte(s.next(uint64(len(names))))
		}
		chains[i] = chain
		text := []string{"main.goOn"}
		for _, function := range chain {
			text = append(text, names[function], "main.goOn")
		}
		fmt.Println("chain:", strings.Join(append(text, "main.leaf"), " > "))
	}
	return chains
}

//go:noinline
func work(end time.Time, stopped *atomic.Bool, used chan<- int64) {
	runtime.LockOSThread()
	perMs := roundsPerMs()
	chains := makeChains(seed(argument(2, 1)))
	fmt.Println("ready")
	leafNs := int64(0)
	for i := 0; !stopped.Load() && time.Now().Before(end); i++ {
		start := threadCPU()
		run(chains[i%len(chains)], 20*perMs)
		leafNs += threadCPU() - start
	}
	used <- leafNs
}

func main() {
	end := time.Now().Add(time.Duration(argument(1, 120) * 1e9))
	var stopped atomic.Bool
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		stopped.Store(true)
	}()
	used := make(chan int64)
	go work(end, &stopped, used)
	fmt.Printf("{\"cpu_ns\": {\"leaf\": %d}}\n", <-used)
}
