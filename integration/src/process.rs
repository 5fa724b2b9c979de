//! A child process that dies with its test and leaves its output behind when the test fails.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

use anyhow::Context as _;

/// The unit of `/proc/<pid>/stat` (`USER_HZ`) on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// How much of a process's output is printed when its test fails.
const TAIL_BYTES: usize = 16_000;

/// A running child and the file that holds its output.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

type Spawn = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Spawns on one thread that lives as long as the test binary: the parent-death signal is sent
/// when the *thread* that spawned ends, and a test's thread ends with its test.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Spawn>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Spawn>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, answer) = mpsc::channel();
    spawner.send((command, reply)).expect("the spawner lives as long as the process");
    answer.recv().expect("the spawner answers every order")
}

impl Process {
    /// Starts `program` in `folder`; its output goes to `<folder>/<name>.log`, appended.
    ///
    /// # Panics
    ///
    /// When the program cannot be started.
    #[must_use]
    pub fn start(
        name: &str,
        program: &str,
        arguments: &[String],
        environment: &[(String, String)],
        folder: &Path,
    ) -> Self {
        let log = folder.join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the test's own folder is writable");
        let errors = output.try_clone().expect("an open file can be cloned");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", program])
            .args(arguments)
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let child = spawn(command).unwrap_or_else(|error| {
            panic!("{program} did not start: {error} (setpriv is part of Debian's util-linux)")
        });
        Self { name: name.to_owned(), child, log }
    }

    /// Returns the process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the processor time it has used, which what else runs on the machine hardly changes.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    pub fn processor(&self) -> anyhow::Result<Duration> {
        processor(self.id())
    }

    /// Returns the memory that is in use by it (its resident set), in bytes.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("no VmRSS in /proc/<pid>/status")?.trim().parse::<u64>()? * 1024)
    }

    /// Returns what the process has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Returns the exit status if the process has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by name, such as `TERM`, `STOP` or `CONT`.
    ///
    /// # Panics
    ///
    /// When the process is no longer there.
    pub fn signal(&mut self, name: &str) {
        assert!(self.exited().is_none(), "{} has ended before SIG{name}", self.name);
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.child.id())])
            .status()
            .expect("sh is there");
        assert!(sent.success(), "SIG{name} could not be sent to {}", self.name);
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    ///
    /// When it has not ended by `deadline`.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(start.elapsed() < deadline, "{} runs on after {deadline:?}", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            print_tail(&self.name, &self.output());
        }
    }
}

/// Returns the processor time that the process `id` has used.
///
/// # Errors
///
/// When the system does not tell.
pub(crate) fn processor(id: u32) -> anyhow::Result<Duration> {
    let [user, system, ..] = times(&id.to_string())?;
    Ok(user + system)
}

/// Returns the processor time of the children that this process has waited for, and of theirs.
///
/// # Errors
///
/// When the system does not tell.
pub fn processor_of_the_ended() -> anyhow::Result<Duration> {
    let [.., user, system] = times("self")?;
    Ok(user + system)
}

/// Reads `utime`, `stime`, `cutime` and `cstime` of proc(5).
fn times(id: &str) -> anyhow::Result<[Duration; 4]> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name, in parentheses, may hold anything; after it come fields 3 and on.
    let (_, fields) = text.rsplit_once(')').context("no name in /proc/<pid>/stat")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut times = [Duration::ZERO; 4];
    for time in &mut times {
        let ticks: u32 = fields.next().context("/proc/<pid>/stat is short")?.parse()?;
        *time = TICK * ticks;
    }
    Ok(times)
}

/// Prints the end of a log on the test's standard error.
pub(crate) fn print_tail(name: &str, output: &str) {
    let mut from = output.len().saturating_sub(TAIL_BYTES);
    while !output.is_char_boundary(from) {
        from += 1;
    }
    eprintln!("--- output of {name}\n{}\n--- end of {name}", &output[from..]);
}
