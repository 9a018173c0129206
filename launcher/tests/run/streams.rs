//! The ranks' input and output, through pipes and on a terminal.

use std::os::fd::{FromRawFd, OwnedFd};

use super::*;

#[test]
fn input_goes_to_rank_0() {
    let mut child =
        windlass(&["-n", "3", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let data = "a line\n".repeat(50_000);
    let mut input = child.stdin.take().unwrap();
    let expected = "[0] a line\n".repeat(50_000);
    let writer = std::thread::spawn(move || input.write_all(data.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(text(&output.stdout) == expected, "{} bytes", output.stdout.len());
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn binary_bytes_and_long_lines_survive() {
    let script = "printf '\\000\\377\\200\\r\\n'; head -c 3000000 /dev/zero | tr '\\0' x; echo; printf end";
    let output = output(&["-n", "2", "--", "sh", "-c", script]);
    let mut lines: Vec<&[u8]> = output.stdout.split_inclusive(|&byte| byte == b'\n').collect();
    lines.sort();
    assert_eq!(lines.len(), 6);
    for (rank, lines) in lines.chunks(3).enumerate() {
        let tag = format!("[{rank}] ").into_bytes();
        assert_eq!(lines[0], [&tag[..], b"\x00\xff\x80\r\n"].concat());
        assert_eq!(lines[1], [&tag[..], b"end\n"].concat());
        assert!(
            lines[2] == [&tag[..], &vec![b'x'; 3_000_000][..], b"\n"].concat(),
            "{} bytes",
            lines[2].len()
        );
    }
}

#[test]
fn both_streams_into_one_pipe_never_mix_within_a_line() {
    let script = "i=0; while test $i -lt 300; do echo $LINE; echo $LINE >&2; i=$((i+1)); done";
    let line = "0123456789".repeat(500);
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" run -n 4 -x LINE --output plain -- sh -c \"$1\" 2>&1"]);
    let output = command.args([env!("CARGO_BIN_EXE_windlass"), script]).env("LINE", &line).output().unwrap();
    let text = text(&output.stdout);
    assert_eq!(text.lines().count(), 2400);
    assert!(text.lines().all(|found| found == line));
}

#[test]
fn all_that_a_dying_rank_wrote_comes_before_the_report() {
    let script = "test $RANK = 1 || exec sleep 100; i=0; while test $i -lt 2000; do echo line $i >&2; i=$((i+1)); done; kill -9 $$";
    let output = output(&["-n", "2", "--", "sh", "-c", script]);
    let errors = text(&output.stderr);
    let lines: Vec<&str> = errors.lines().collect();
    assert!((0..2000).all(|i| lines[i] == format!("[1] line {i}")));
    assert!(lines[2000].starts_with("windlass: rank 1"), "{}", lines[2000]);
    assert!(lines.contains(&"    | line 1999"), "{errors}");
}

#[test]
fn a_slow_reader_loses_nothing_and_slows_the_ranks() {
    let script = "i=0; while test $i -lt 3000; do echo $LINE $i; i=$((i+1)); done; echo finished >&2";
    let line = "y".repeat(1000);
    let mut command = windlass(&["-n", "1", "-x", "LINE", "--", "sh", "-c", script]);
    let mut child = command.env("LINE", &line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let errors = read_lines(child.stderr.take().unwrap());
    // 3 MB are to be written, and nobody reads: the rank must not get to its end.
    assert!(errors.recv_timeout(Duration::from_millis(700)).is_err(), "the output has piled up somewhere");
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert_eq!(text(&output).lines().count(), 3000);
    assert!(text(&output).lines().enumerate().all(|(i, found)| found == format!("[0] {line} {i}")));
    assert_eq!(errors.recv_timeout(PATIENCE).unwrap(), "[0] finished");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_leaves_ends_the_job_quietly() {
    let mut job = Job::start(&["-n", "2", "--", "true"]);
    assert!(job.child.wait().unwrap().success());
    let mut command = windlass(&["-n", "2", "--", "sh", "-c", "while :; do echo y; done"]);
    let mark = format!("head-{}", std::process::id());
    command.env("WINDLASS_TEST_MARK", &mark).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.ends_with("] y\n"), "{first}");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(141), ""));
    await_none(&mark);
}

#[test]
fn ranks_that_close_their_output_go_on() {
    let output = output(&["-n", "2", "--", "sh", "-c", "exec >&- 2>&-; sleep 0.3; exit 0"]);
    assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(0), 0, 0));
}

/// Runs a job whose three standard streams are a terminal, and returns all that the terminal showed. `keys` are typed
/// one after another, each once the terminal has shown the text before it.
fn on_a_terminal(mut command: Command, keys: &[(&str, &[u8])]) -> (String, ExitStatus) {
    let (mut ours, mut theirs) = (0, 0);
    let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: openpty writes two descriptors into the two integers; null asks for no name and the default settings.
    assert_eq!(unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, size) }, 0);
    // SAFETY: both were opened just now, and nothing else owns them.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    default_dispositions(&mut command);
    // SAFETY: setsid and ioctl are system calls only; descriptor 0 is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
    let mut child = command.spawn().unwrap();
    // It holds this process's copies of the terminal, whose end would otherwise never show.
    drop(command);
    let mut terminal = std::fs::File::from(ours);
    let (mut shown, mut keys, mut buffer) = (String::new(), keys.iter().peekable(), [0; 4096]);
    loop {
        while let Some((_, key)) = keys.next_if(|(before, _)| shown.contains(before)) {
            terminal.write_all(key).unwrap();
        }
        match terminal.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => shown.push_str(&text(&buffer[..count])),
        }
    }
    (shown, child.wait().unwrap())
}

#[test]
fn a_terminal_gets_colours_unless_told_not_to() {
    let mut command = windlass(&["-n", "2", "--", "echo", "hi"]);
    command.env_remove("NO_COLOR");
    let (shown, status) = on_a_terminal(command, &[]);
    assert!(
        shown.contains("\x1b[31m[0]\x1b[0m hi\r\n") && shown.contains("\x1b[32m[1]\x1b[0m hi\r\n"),
        "{shown:?}"
    );
    assert!(status.success());
    let mut command = windlass(&["-n", "1", "--", "echo", "hi"]);
    command.env("NO_COLOR", "1");
    assert_eq!(on_a_terminal(command, &[]).0, "[0] hi\r\n");
}

#[test]
fn a_terminals_lines_go_to_rank_0_and_its_interrupt_to_every_rank() {
    let script = "read line; echo \"got $line.\"; exec sleep 100";
    let mut command = windlass(&["-n", "2", "--", "sh", "-c", script]);
    command.env("NO_COLOR", "1");
    let (shown, status) = on_a_terminal(command, &[("[1] got .", b"hello\n"), ("[0] got hello.", b"\x03")]);
    assert!(shown.ends_with("windlass: the job was ended by SIGINT\r\n"), "{shown:?}");
    assert_eq!(status.code(), Some(130));
}
