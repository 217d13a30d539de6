//! Running other programs: what is run is said, and a long silence is not mistaken for a hang.
//!
//! Everything goes to standard error; standard output belongs to the program a task is about.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long a long step may be silent before a line says that it is still at work.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often to ask whether a silent command has ended.
const POLL: Duration = Duration::from_millis(100);
/// Lines shown of a quiet step that failed.
const TAIL: usize = 30;

/// What a long step's own lines become.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// Shown, indented.
    Shown,
    /// Kept, and shown only if the step fails.
    Kept,
}

/// Runs a command with our own streams, after saying which.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs a command, reads what it says and passes it on to standard output.
///
/// # Errors
/// As [`read_lines`].
pub(crate) fn run_read(command: &mut Command, mut read: impl FnMut(&str)) -> Result<()> {
    eprintln!("$ {}", describe(command));
    read_lines(command, |line| {
        read(line);
        writeln!(std::io::stdout(), "{line}").context("cannot write standard output")
    })
}

/// Runs a command and gives each of its lines to `read`.
///
/// Both its streams go through one pipe, so that their lines keep their order. Ends
/// when the command does: a program that a test left behind may hold the pipe for ever.
///
/// # Errors
/// When it cannot be started or fails, and whatever `read` says.
pub(crate) fn read_lines(
    command: &mut Command,
    mut read: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let description = describe(command);
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let second = writer.try_clone().context("cannot make a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(second)
        .spawn()
        .with_context(|| format!("cannot start `{description}`"))?;
    // The command holds the pipe's other end for as long as it is kept: the reader would wait.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (sender, receiver) = mpsc::channel();
    forward(Some(reader), sender);
    let mut ended = None;
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(line) => read(&line)?,
            // One more silent interval after the end: what was written before it has been read.
            Err(RecvTimeoutError::Timeout) if ended.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {
                ended = child.try_wait().with_context(|| format!("cannot ask `{description}`"))?;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = match ended {
        Some(status) => status,
        None => child.wait().with_context(|| format!("cannot wait for `{description}`"))?,
    };
    if !status.success() {
        bail!("`{description}` failed ({status})");
    }
    Ok(())
}

/// Runs a command and returns its standard output; what it said is part of the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command, after saying which, and returns its standard output; what it says on standard
/// error is shown as it comes.
pub(crate) fn output_shown(command: &mut Command) -> Result<String> {
    let line = describe(command);
    eprintln!("$ {line}");
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({})", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a long command, with a heartbeat line whenever it is silent.
pub(crate) fn run_long(what: &str, command: &mut Command, lines: Lines) -> Result<()> {
    let description = describe(command);
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{description}`"))?;
    let (sender, receiver) = mpsc::channel();
    forward(child.stdout.take(), sender.clone());
    forward(child.stderr.take(), sender);
    let mut said = Vec::new();
    loop {
        match receiver.recv_timeout(HEARTBEAT) {
            Ok(line) if lines == Lines::Shown => eprintln!("    {line}"),
            Ok(line) => said.push(line),
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("    … {what}, {} s", start.elapsed().as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{description}`"))?;
    if !status.success() {
        for line in said.iter().skip(said.len().saturating_sub(TAIL)) {
            eprintln!("    {line}");
        }
        bail!("{what}: `{description}` failed ({status})");
    }
    Ok(())
}

/// Sends each line of `stream` until it ends; the thread ends with the stream.
fn forward(stream: Option<impl Read + Send + 'static>, sender: Sender<String>) {
    let Some(stream) = stream else { return };
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
}

/// The command as one would type it.
fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .map(|word| if word.contains([' ', '*']) { format!("'{word}'") } else { word.into_owned() })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit 3") && text.contains("broken"), "{text}");
    }

    #[test]
    fn reading_ends_with_the_command_and_not_with_what_it_left_behind() {
        let script = "echo one; echo two >&2; sleep 11 & exit 0";
        let start = Instant::now();
        let mut lines = Vec::new();
        run_read(Command::new("sh").args(["-c", script]), |line| lines.push(line.to_owned()))
            .unwrap();
        assert_eq!(lines, ["one", "two"]);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_long_command_reads_both_streams_to_the_end() {
        let script = "for i in $(seq 5000); do echo $i; echo $i >&2; done";
        run_long("count", Command::new("sh").args(["-c", script]), Lines::Kept).unwrap();
        assert!(run_long("fail", Command::new("sh").args(["-c", "exit 1"]), Lines::Kept).is_err());
    }
}
