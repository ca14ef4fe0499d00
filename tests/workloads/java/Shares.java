// 70 % of the time in heavyWork, called by heavyCaller, and 30 % in lightWork, called by lightCaller,
// on a thread of its own.
public class Shares {
    static volatile int result;

    static int heavyWork(long rounds) {
        int x = 1;
        for (long i = 0; i < rounds; i++) x = x * 1664525 + 1013904223;
        return x;
    }

    static int lightWork(long rounds) {
        int x = 1;
        for (long i = 0; i < rounds; i++) x = x * 69069 + 1;
        return x;
    }

    static int heavyCaller(long rounds) { return heavyWork(rounds) + 1; }

    static int lightCaller(long rounds) { return lightWork(rounds) + 1; }

    static long roundsPerMs() {
        long best = Long.MAX_VALUE, rounds = 300_000;
        for (int i = 0; i < 20; i++) {
            long start = System.nanoTime();
            result = heavyWork(rounds);
            best = Math.min(best, System.nanoTime() - start);
        }
        return Math.max(1, rounds * 1_000_000 / Math.max(1, best));
    }

    public static void main(String[] arguments) throws Exception {
        double seconds = arguments.length > 0 ? Double.parseDouble(arguments[0]) : 120;
        long end = System.nanoTime() + (long) (seconds * 1e9);
        Workload.stopOnSignal();
        long perMs = roundsPerMs();
        System.out.println("ready");
        long heavy = 0, light = 0;
        while (!Workload.stopped && System.nanoTime() < end) {
            long start = System.nanoTime();
            result = heavyCaller(70 * perMs);
            long middle = System.nanoTime();
            result = lightCaller(30 * perMs);
            heavy += middle - start;
            light += System.nanoTime() - middle;
        }
        Workload.end("\"heavyWork\": " + heavy + ", \"lightWork\": " + light);
    }
}
