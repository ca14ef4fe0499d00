// main → first → (*ledger).second → third (generic) → leaf, which Go gives no frame. Each calls the
// next one again and again.
package main

import "fmt"

//go:noinline
func leaf(x uint64) uint64 {
	for i := 0; i < 1000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func third[T uint64 | uint32](start T) uint64 {
	x := uint64(start)
	for i := 0; i < 3; i++ {
		x ^= leaf(x)
	}
	return x
}

type ledger struct{ sum uint64 }

//go:noinline
func (l *ledger) second(x uint64) {
	for i := 0; i < 3; i++ {
		l.sum += third(uint32(x)) + x
	}
}

//go:noinline
func first(l *ledger) {
	for i := uint64(0); i < 3; i++ {
		l.second(l.sum + i)
	}
}

func main() {
	fmt.Println("ready")
	var l ledger
	for {
		first(&l)
	}
}
