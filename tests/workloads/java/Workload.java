// What the workloads share: how they are told to end, and how they do.
final class Workload {
    static volatile boolean stopped;

    // Signals set `stopped` from here on, and the JVM waits for this thread.
    static void stopOnSignal() {
        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stopped = true;
            try {
                main.join();
            } catch (InterruptedException ignored) {
            }
        }));
    }

    // `cpuNs` is what each function used, as fields of a JSON object.
    static void end(String cpuNs) {
        System.out.println("{\"cpu_ns\": {" + cpuNs + "}}");
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }
}
