// Threads that throw through many frames all the time, and meet other types than the compilers have counted
// on, so that compiled code is left in its midst.
public class Throws {
    static volatile long result;

    interface Shape { double area(double x); }
    static class Square implements Shape { public double area(double x) { return x * x; } }
    static class Line implements Shape { public double area(double x) { return x + 1; } }
    static class Wave implements Shape { public double area(double x) { return Math.sin(x); } }
    static class Hole implements Shape {
        public double area(double x) {
            if (x > 1e6) throw new IllegalStateException("too far");
            return x * 3.1;
        }
    }

    static int down(int depth, int value) {
        if (depth > 0) return down(depth - 1, value * 31 + 1) + 1;
        if ((value & 7) == 0) throw new RuntimeException("deep " + value);
        return value;
    }

    static void throwFarUp(int i) {
        try {
            result += down(20 + (i & 31), i);
        } catch (RuntimeException e) {
            result += e.getStackTrace().length;
        }
    }

    static void change(int i) {
        Shape[] shapes = {new Square(), new Line(), new Wave(), new Hole()};
        int first = (int) (System.nanoTime() / 300_000_000L) % 4;
        double sum = 0;
        for (int k = 0; k < 200; k++) sum += shapes[(first + (k % 50 == 0 ? 1 : 0)) % 4].area(k);
        try {
            sum += new Hole().area(i % 1000 == 0 ? 2e6 : 3);
        } catch (IllegalStateException e) {
            sum++;
        }
        result += (long) sum;
    }

    static void work() {
        for (int i = 0; !Workload.stopped; i++) {
            throwFarUp(i);
            change(i);
            synchronized (Throws.class) { result += i; }
        }
    }

    public static void main(String[] arguments) throws Exception {
        Thread[] threads = new Thread[4];
        for (int i = 0; i < threads.length; i++) {
            threads[i] = new Thread(Throws::work);
            threads[i].start();
        }
        Workload.stopOnSignal();
        System.out.println("ready");
        for (Thread thread : threads) thread.join();
        Workload.end("");
    }
}
