import java.lang.reflect.Method;

// Virtual threads that give way at the end of 70 calls, and work there and on their way back. Their stacks
// are so long that they come back from memory a frame or two at a time. Run with
// -XX:CompileCommand=dontinline,Virtual::*, each call keeps a frame. (Reflection, because it is compiled for
// a JDK that has no virtual threads.)
public class Virtual implements Runnable {
    static volatile long result;

    public void run() {
        long x = 1;
        while (!Workload.stopped) x = down(70, x);
        result = x;
    }

    // What lives across the call makes the frame long.
    static long down(int depth, long x) {
        if (depth == 0) {
            Thread.yield();
            return leaf(x);
        }
        long a = x * 3, b = x * 5, c = x * 7, d = x * 11;
        long inner = down(depth - 1, x ^ depth);
        return depth % 10 == 0 ? leaf(inner + a) + b : (inner + a * b) ^ (c + d);
    }

    static long leaf(long x) {
        for (int i = 0; i < 30_000; i++) x = x * 6364136223846793005L + 1442695040888963407L;
        return x;
    }

    public static void main(String[] arguments) throws Exception {
        Method start = Thread.class.getMethod("startVirtualThread", Runnable.class);
        Thread[] threads = new Thread[8];
        for (int i = 0; i < threads.length; i++) threads[i] = (Thread) start.invoke(null, new Virtual());
        Workload.stopOnSignal();
        // Until the compilers have nothing left to do.
        Thread.sleep(2000);
        System.out.println("ready");
        for (Thread thread : threads) thread.join();
        Workload.end("");
    }
}
