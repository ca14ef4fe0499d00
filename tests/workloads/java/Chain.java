// A chain of six methods, each with a frame of another shape, from run down to leaf, where the time goes.
// They are called so often that the JVM compiles them soon; run with
// -XX:CompileCommand=dontinline,Chain::*, each keeps a frame of its own.
public class Chain {
    static volatile long result;

    static long leaf(long x) {
        for (int i = 0; i < 20_000; i++) x = x * 6364136223846793005L + 1442695040888963407L;
        return x;
    }

    static long sixth(long x) { return leaf(x) + 1; }

    // Many values that live across the call.
    static long fifth(long a, long b, long c, long d, long e, long f, long g, long h) {
        long inner = sixth(a ^ h);
        return inner + a * b + c * d + e * f + g * h;
    }

    static double fourth(double x, float y, long z) {
        double before = x * y;
        return before + fifth(z, z + 1, z + 2, z + 3, z + 4, z + 5, z + 6, z + 7);
    }

    static long third(int[] values, long x) {
        int sum = 0;
        for (int value : values) sum += value;
        return sum + (long) fourth(sum, sum / 3f, x);
    }

    interface Step { long turn(long x); }

    static class Left implements Step {
        int[] values = {3, 1, 4, 1, 5};
        public long turn(long x) { return third(values, x) - 1; }
    }

    static class Right implements Step {
        int[] values = {2, 7, 1};
        public synchronized long turn(long x) { return third(values, x) + 1; }
    }

    static long first(Step step, long x) {
        try {
            return step.turn(x) * 3;
        } finally {
            result++;
        }
    }

    static long run(Step[] steps, long x) {
        for (int i = 0; i < 50; i++) x += first(steps[i & 1], x);
        return x;
    }

    public static void main(String[] arguments) throws Exception {
        double seconds = arguments.length > 0 ? Double.parseDouble(arguments[0]) : 120;
        long start = System.nanoTime();
        Workload.stopOnSignal();
        Step[] steps = {new Left(), new Right()};
        long x = 1;
        // Until the compilers have nothing left to do.
        while (System.nanoTime() - start < 2_000_000_000L) x = run(steps, x);
        System.out.println("ready");
        while (!Workload.stopped && System.nanoTime() - start < (long) (seconds * 1e9)) x = run(steps, x);
        result = x;
        Workload.end("");
    }
}
