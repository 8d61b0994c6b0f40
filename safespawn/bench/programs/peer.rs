// Rust's std::process::Command, measured in a Rust program that has the ballast and the threads itself.
//
//   peer TARGET STAMP MIB THREADS small|huge
//
// Then a line on stdin for each measurement, its fields separated by tabs: MEASURE WAY WHO COUNT MANY. It is
// answered by a line of numbers, or by "! " and why not. docs/measurements.md tells what each measure is.
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;

const NOBODY: u32 = 65534;
const PAGE: usize = 4096;
const WINDOW: usize = 1 << 20; // what is written to after a spawn, to see the faults

#[repr(C)]
struct Timespec {
    sec: i64,
    nsec: i64,
}

extern "C" {
    fn clock_gettime(clock: i32, now: *mut Timespec) -> i32;
    fn mmap(at: *mut u8, size: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    fn madvise(at: *mut u8, size: usize, advice: i32) -> i32;
}

fn now_ns() -> i64 {
    let mut now = Timespec { sec: 0, nsec: 0 };
    unsafe { clock_gettime(1, &mut now) }; // CLOCK_MONOTONIC, which the target reads too
    now.sec * 1_000_000_000 + now.nsec
}

/// Returns the address of that much private memory, each page written.
fn hold(mebibytes: usize, huge: bool) -> usize {
    let size = (mebibytes << 20).max(WINDOW);
    unsafe {
        let at = mmap(std::ptr::null_mut(), size, 3, 0x22, -1, 0); // read, write; private, anonymous
        assert!(at as isize != -1, "no memory");
        madvise(at, size, if huge { 14 } else { 15 }); // MADV_HUGEPAGE, MADV_NOHUGEPAGE
        for page in (0..size).step_by(PAGE) {
            at.add(page).write_volatile(1);
        }
        at as usize
    }
}

#[derive(Clone)]
struct Task {
    target: String,
    stamp: String,
    other: bool,
}

impl Task {
    fn start(&self, stamped: bool) -> io::Result<Child> {
        let mut command = Command::new(&self.target);
        if stamped {
            command.arg(&self.stamp);
        }
        if self.other {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.spawn()
    }

    fn run(&self) -> io::Result<()> {
        finish(self.start(false)?)
    }

    fn exit(&self) -> io::Result<Vec<i64>> {
        let before = now_ns();
        let child = self.start(false)?;
        let called = now_ns() - before;
        finish(child)?;
        Ok(vec![called, now_ns() - before])
    }

    fn exec(&self) -> io::Result<Vec<i64>> {
        let before = now_ns();
        finish(self.start(true)?)?;
        let began = std::fs::read(&self.stamp)?;
        Ok(vec![i64::from_ne_bytes(began[..8].try_into().unwrap()) - before])
    }

    fn faults(&self, at: usize) -> io::Result<Vec<i64>> {
        self.run()?;
        let before = now_ns();
        for page in (0..WINDOW).step_by(PAGE) {
            unsafe { (at as *mut u8).add(page).write_volatile(2) };
        }
        Ok(vec![now_ns() - before])
    }

    fn batch(&self, many: usize) -> io::Result<Vec<i64>> {
        let before = now_ns();
        let children: io::Result<Vec<Child>> = (0..many).map(|_| self.start(false)).collect();
        let started = now_ns() - before;
        for child in children? {
            finish(child)?;
        }
        Ok(vec![started, now_ns() - before])
    }

    fn rate(&self, count: usize, many: usize) -> io::Result<Vec<i64>> {
        let gate = Arc::new(Barrier::new(many + 1));
        let spawners: Vec<_> = (0..many)
            .map(|_| {
                let (gate, task) = (gate.clone(), self.clone());
                thread::spawn(move || {
                    gate.wait();
                    (0..count).try_for_each(|_| task.run())
                })
            })
            .collect();
        gate.wait();
        let before = now_ns();
        for spawner in spawners {
            spawner.join().unwrap()?;
        }
        Ok(vec![(now_ns() - before) / (count * many) as i64])
    }
}

fn finish(mut child: Child) -> io::Result<()> {
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

/// A thread that looks at the clock and writes to memory all the time, and keeps the longest gap.
struct Pacer {
    stop: AtomicBool,
    looks: AtomicU64,
    longest: AtomicI64,
}

impl Pacer {
    fn pace(&self, at: usize) {
        let mut before = now_ns();
        while !self.stop.load(SeqCst) {
            unsafe { (at as *mut u8).write_volatile(3) };
            let now = now_ns();
            self.longest.fetch_max(now - before, SeqCst);
            self.looks.fetch_add(1, SeqCst);
            before = now;
            thread::yield_now();
        }
    }

    fn await_look(&self) {
        let until = self.looks.load(SeqCst) + 2; // the first may have begun before now
        while self.looks.load(SeqCst) < until {
            thread::yield_now();
        }
    }
}

fn stall(task: &Task, count: usize, at: usize) -> io::Result<Vec<i64>> {
    let pacer = Arc::new(Pacer { stop: false.into(), looks: 0.into(), longest: 0.into() });
    let other = pacer.clone();
    let thread = thread::spawn(move || other.pace(at));
    let mut gaps = Vec::new();
    let mut told = Ok(());
    for _ in 0..count {
        pacer.await_look();
        pacer.longest.store(0, SeqCst);
        told = task.run();
        pacer.await_look();
        gaps.push(pacer.longest.load(SeqCst));
        if told.is_err() {
            break;
        }
    }
    pacer.stop.store(true, SeqCst);
    thread.join().unwrap();
    told.map(|()| gaps)
}

fn measure(task: &Task, words: &[&str], at: usize) -> io::Result<Vec<i64>> {
    let (count, many) = (words[3].parse().unwrap(), words[4].parse().unwrap());
    match words[0] {
        "stall" => return stall(task, count, at),
        "rate" => return task.rate(count, many),
        _ => (),
    }
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.extend(match words[0] {
            "exit" => task.exit()?,
            "exec" => task.exec()?,
            "faults" => task.faults(at)?,
            "batch" => task.batch(many)?,
            other => return Err(io::Error::other(format!("Rust does not measure {other}"))),
        });
    }
    Ok(taken)
}

fn main() {
    let given: Vec<String> = std::env::args().collect();
    let at = hold(given[3].parse().unwrap(), given[5] == "huge");
    for _ in 1..given[4].parse::<usize>().unwrap() {
        thread::spawn(|| loop {
            thread::park();
        });
    }
    println!("ready");
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split('\t').collect();
        let task =
            Task { target: given[1].clone(), stamp: given[2].clone(), other: words[2] == "other" };
        match measure(&task, &words, at) {
            Ok(taken) => {
                let taken: Vec<String> = taken.iter().map(|one| one.to_string()).collect();
                println!("{}", taken.join("\t"));
            }
            Err(problem) => println!("! {problem}"),
        }
        io::stdout().flush().unwrap();
    }
}
