// Java's ProcessBuilder, measured in a Java process. Its heap is the ballast: as large from the start, and written
// to (-Xms, -XX:+AlwaysPreTouch). The protocol is that of peer.rs:
//
//   java ... Peer TARGET STAMP THREADS
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Collectors;

public class Peer {
    static final int PAGE = 4096;
    static final byte[] WINDOW = new byte[1 << 20];
    static String target;
    static String stamp;

    /** Looks at the clock and writes to memory all the time, and keeps the longest gap. */
    static class Pacer extends Thread {
        volatile boolean stop;
        final AtomicLong looks = new AtomicLong();
        final AtomicLong longest = new AtomicLong();

        @Override
        public void run() {
            long before = System.nanoTime();
            while (!stop) {
                WINDOW[0]++;
                long now = System.nanoTime();
                longest.accumulateAndGet(now - before, Math::max);
                looks.incrementAndGet();
                before = now;
                Thread.yield();
            }
        }

        void awaitLook() {
            long until = looks.get() + 2; // the first may have begun before now
            while (looks.get() < until) {
                Thread.yield();
            }
        }
    }

    static Process start(String... more) throws IOException {
        List<String> command = new ArrayList<>(List.of(target));
        command.addAll(List.of(more));
        return new ProcessBuilder(command).inheritIO().start();
    }

    static void finish(Process process) throws IOException, InterruptedException {
        int code = process.waitFor();
        if (code != 0) {
            throw new IOException("the program ended with " + code);
        }
    }

    static void exit(List<Long> taken) throws Exception {
        long before = System.nanoTime(); // CLOCK_MONOTONIC, which the target reads too
        Process process = start();
        long called = System.nanoTime() - before;
        finish(process);
        taken.add(called);
        taken.add(System.nanoTime() - before);
    }

    static void exec(List<Long> taken) throws Exception {
        long before = System.nanoTime();
        finish(start(stamp));
        ByteBuffer began = ByteBuffer.wrap(Files.readAllBytes(Path.of(stamp))).order(ByteOrder.nativeOrder());
        taken.add(began.getLong() - before);
    }

    static void faults(List<Long> taken) throws Exception {
        finish(start());
        long before = System.nanoTime();
        for (int at = 0; at < WINDOW.length; at += PAGE) {
            WINDOW[at]++;
        }
        taken.add(System.nanoTime() - before);
    }

    static void stall(List<Long> taken, int count) throws Exception {
        Pacer pacer = new Pacer();
        pacer.start();
        try {
            for (int i = 0; i < count; i++) {
                pacer.awaitLook();
                pacer.longest.set(0);
                finish(start());
                pacer.awaitLook();
                taken.add(pacer.longest.get());
            }
        } finally {
            pacer.stop = true;
            pacer.join();
        }
    }

    static void batch(List<Long> taken, int many) throws Exception {
        long before = System.nanoTime();
        List<Process> processes = new ArrayList<>();
        for (int i = 0; i < many; i++) {
            processes.add(start());
        }
        taken.add(System.nanoTime() - before);
        for (Process process : processes) {
            finish(process);
        }
        taken.add(System.nanoTime() - before);
    }

    static void rate(List<Long> taken, int count, int many) throws Exception {
        CountDownLatch gate = new CountDownLatch(1);
        AtomicLong failed = new AtomicLong();
        List<Thread> spawners = new ArrayList<>();
        for (int i = 0; i < many; i++) {
            Thread spawner = new Thread(() -> {
                try {
                    gate.await();
                    for (int j = 0; j < count; j++) {
                        finish(start());
                    }
                } catch (Exception problem) {
                    failed.incrementAndGet();
                }
            });
            spawner.start();
            spawners.add(spawner);
        }
        long before = System.nanoTime();
        gate.countDown();
        for (Thread spawner : spawners) {
            spawner.join();
        }
        if (failed.get() != 0) {
            throw new IOException("a spawn failed");
        }
        taken.add((System.nanoTime() - before) / ((long) count * many));
    }

    static List<Long> measure(String[] words) throws Exception {
        int count = Integer.parseInt(words[3]);
        int many = Integer.parseInt(words[4]);
        List<Long> taken = new ArrayList<>();
        if (words[2].equals("other")) {
            throw new IOException("ProcessBuilder cannot change the user");
        }
        switch (words[0]) {
            case "stall" -> stall(taken, count);
            case "rate" -> rate(taken, count, many);
            default -> {
                for (int i = 0; i < count; i++) {
                    switch (words[0]) {
                        case "exit" -> exit(taken);
                        case "exec" -> exec(taken);
                        case "faults" -> faults(taken);
                        case "batch" -> batch(taken, many);
                        default -> throw new IOException("Java does not measure " + words[0]);
                    }
                }
            }
        }
        return taken;
    }

    static void idle(int count) {
        for (int i = 0; i < count; i++) {
            Thread thread = new Thread(() -> {
                try {
                    Thread.currentThread().join(); // never ends
                } catch (InterruptedException problem) {
                    return;
                }
            });
            thread.setDaemon(true);
            thread.start();
        }
    }

    public static void main(String[] given) throws Exception {
        target = given[0];
        stamp = given[1];
        idle(Integer.parseInt(given[2]) - 1);
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        System.out.println("ready");
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                List<Long> taken = measure(line.split("\t"));
                System.out.println(taken.stream().map(String::valueOf).collect(Collectors.joining("\t")));
            } catch (Exception problem) {
                System.out.println("! " + problem.getMessage());
            }
        }
    }
}
