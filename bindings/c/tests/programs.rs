//! Programs in C, as a user builds them: against an installed library, by pkg-config, and here under the address and
//! undefined-behaviour sanitizers, or under valgrind, which sees into the library too. Each runs as ranks started as torchrun would.

#![expect(clippy::unwrap_used, reason = "a test that cannot start what it tests fails")]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use windlass::Collective;

/// A test that passes does not wait for it.
const PATIENCE: Duration = Duration::from_secs(60);
const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g"];
const SANITIZED: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// What memcheck counts as an error ends a program with this status. What is still reachable at the end, or only from the middle of what
/// the standard library keeps of a thread, is none.
const VALGRIND: [&str; 7] = [
    "valgrind",
    "--quiet",
    "--error-exitcode=99",
    "--leak-check=full",
    "--show-leak-kinds=definite",
    "--errors-for-leak-kinds=definite",
    "--",
];

/// Says that a test cannot run here, in the words that `tools/test` counts.
fn missing(tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        println!("skipped: programs in C, because there is no {tool} here");
    }
    !there
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A name of its own: tests may share a process.
fn fresh() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// The library as `make install-c` leaves it, gone at the test's end.
struct Installed(PathBuf);

impl Installed {
    fn new() -> Self {
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("prefix-{}", fresh()));
        // Cargo builds the library next to the tests.
        let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        succeeds(Command::new(here("install")).arg(built).arg(&prefix));
        Self(prefix)
    }

    /// The compiler's arguments, by pkg-config where it is there.
    fn flags(&self, with: &[&str]) -> Vec<String> {
        let lib = self.0.join("lib");
        let mut config = Command::new("pkg-config");
        config
            .args(["--cflags", "--libs"])
            .args(with)
            .arg("windlass")
            .env("PKG_CONFIG_PATH", lib.join("pkgconfig"));
        let flags = match config.output() {
            Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
            Ok(output) => panic!("pkg-config: {}", text(&output)),
            Err(_) => {
                println!("skipped: pkg-config, because it is not here");
                let system = if with.is_empty() { "" } else { "-lgcc_s -lutil -lrt -lpthread -lm -ldl" };
                format!("-I{} -L{} -lwindlass {system}", self.0.join("include").display(), lib.display())
            }
        };
        let mut flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        flags.push(format!("-Wl,-rpath,{}", lib.display()));
        flags
    }

    fn build(&self, source: &Path, flags: &[&str]) -> PathBuf {
        let program = self.0.join(source.file_stem().unwrap());
        let mut cc = Command::new("cc");
        cc.args(STRICT)
            .args(flags)
            .arg("-o")
            .arg(&program)
            .arg(source)
            .args(self.flags(&[]))
            .arg("-lpthread");
        succeeds(&mut cc);
        program
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Processes that are ended with the test.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs the program as so many ranks, `under` another one if that is named; what they said, if all went well.
fn run(under: &[&str], program: &Path, ranks: u32) -> Result<String, String> {
    let job = format!("c-{}", fresh());
    let start = |rank: u32| {
        let mut command = Command::new(under.first().map_or(program.as_os_str(), AsRef::as_ref));
        if let Some((_, arguments)) = under.split_first() {
            command.args(arguments).arg(program);
        }
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WINDLASS_"))
        {
            command.env_remove(name);
        }
        let said = std::fs::File::create(program.with_extension(format!("{rank}.log"))).unwrap();
        command
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", ranks.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", &job)
            .env("WINDLASS_TIMEOUT", "30")
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said);
        command.spawn().unwrap()
    };
    let mut started = Ranks((0..ranks).map(start).collect());
    let deadline = Instant::now() + PATIENCE;
    let mut well = true;
    for child in &mut started.0 {
        loop {
            match child.try_wait().unwrap() {
                Some(status) => break well &= status.success(),
                None if Instant::now() > deadline => break well = false,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
    drop(started);
    let mut all = String::new();
    for rank in 0..ranks {
        let log = std::fs::read(program.with_extension(format!("{rank}.log"))).unwrap();
        write!(all, "{}", String::from_utf8_lossy(&log)).unwrap();
    }
    if well { Ok(all) } else { Err(all) }
}

#[track_caller]
fn runs(program: &Path, ranks: u32) -> String {
    run(&[], program, ranks).unwrap_or_else(|said| panic!("{} failed:\n{said}", program.display()))
}

#[test]
fn the_header_is_clean_in_c_and_in_cpp() {
    for (compiler, standard) in [("cc", "c99"), ("cc", "c11"), ("c++", "c++11"), ("c++", "c++17")] {
        if missing(compiler) {
            continue;
        }
        let language = if compiler == "cc" { "c" } else { "c++" };
        let mut command = Command::new(compiler);
        command.args(STRICT).arg(format!("-std={standard}")).args(["-fsyntax-only", "-x", language]);
        succeeds(command.arg("-include").arg(here("include/windlass.h")).arg("/dev/null"));
    }
}

#[test]
fn the_example_averages_gradients() {
    if missing("cc") {
        return;
    }
    let installed = Installed::new();
    let program = installed.build(&here("examples/all_reduce.c"), &SANITIZED);
    let said = runs(&program, 4);
    assert_eq!(said.matches("5 steps, total loss").count(), 4, "{said}");
    assert!(said.contains("refused as it should be: broadcast: the root is 4 but must be below 4"), "{said}");
    assert!(runs(&program, 1).contains("rank 0 of 1"));
}

#[test]
fn the_example_averages_gradients_on_a_device() {
    if missing("cc") {
        return;
    }
    let installed = Installed::new();
    let program = installed.build(&here("examples/device_memory.c"), &SANITIZED);
    let said = runs(&program, 2);
    assert_eq!(said.matches("of 2: 20 steps are right, with ").count(), 2, "{said}");
}

/// Memcheck reads every load and store of the library's, where the sanitizers only see the program's.
#[test]
fn the_example_is_clean_under_valgrind() {
    if missing("cc") || missing("valgrind") {
        return;
    }
    let installed = Installed::new();
    let program = installed.build(&here("examples/all_reduce.c"), &[]);
    let said = run(&VALGRIND, &program, 2).unwrap_or_else(|said| panic!("{said}"));
    assert_eq!(said.matches("5 steps, total loss").count(), 2, "{said}");
    assert!(!said.contains("=="), "memcheck has something to say:\n{said}");

    // It finds what the sanitizers cannot: memory that the library reads after it was freed.
    let source = installed.0.join("freed.c");
    let freed = "#include <stdlib.h>\n#include <windlass.h>\n\
        int main(void) { windlass_comm_t comm; if (windlass_init(&comm)) return 1; float *m = calloc(64, 4), *volatile n = m; free(m);\n\
        return windlass_all_reduce(n, n, 64, WINDLASS_F32, WINDLASS_SUM, comm); }\n";
    std::fs::write(&source, freed).unwrap();
    let found = run(&VALGRIND, &installed.build(&source, &["-Wno-use-after-free"]), 1);
    assert!(found.is_err_and(|said| said.contains("Invalid read")));
}

#[test]
fn every_collective_is_right() {
    if missing("cc") {
        return;
    }
    let installed = Installed::new();
    let rows: Vec<String> = Collective::ALL.iter().map(|row| (*row as u8).to_string()).collect();
    let rows = format!("-DCOLLECTIVES={}", rows.join(","));
    let program = installed.build(&here("tests/c/collectives.c"), &[&SANITIZED[..], &[&rows]].concat());
    assert_eq!(runs(&program, 3).matches("every collective is right").count(), 3);
}

#[test]
fn what_must_not_be_done_is_refused() {
    if missing("cc") {
        return;
    }
    let installed = Installed::new();
    for (source, said) in [("torture", "everything was refused"), ("lists", "every list was refused")] {
        let program = installed.build(&here(&format!("tests/c/{source}.c")), &SANITIZED);
        assert_eq!(runs(&program, 2).matches(said).count(), 2);
    }
}

#[test]
fn device_memory_moves_and_what_is_wrong_with_it_is_refused() {
    if missing("cc") {
        return;
    }
    let installed = Installed::new();
    let program = installed.build(&here("tests/c/device.c"), &SANITIZED);
    let said = runs(&program, 2);
    assert_eq!(said.matches("device memory was right").count(), 2, "{said}");
    said.lines().filter(|line| line.starts_with("skipped: ")).take(1).for_each(|line| println!("{line}"));
}

/// The program in the README, as it stands there, also linked to the static library.
#[test]
fn the_readme_s_program_compiles_and_runs() {
    if missing("cc") {
        return;
    }
    let installed = Installed::new();
    let readme = std::fs::read_to_string(here("README.md")).unwrap();
    let program = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let source = installed.0.join("readme.c");
    std::fs::write(&source, program).unwrap();
    let shared = installed.build(&source, &SANITIZED);
    assert_eq!(runs(&shared, 2).matches("the sum of 2 ranks is 3").count(), 2);

    let alone = installed.0.join("static");
    for file in std::fs::read_dir(installed.0.join("lib")).unwrap().flatten() {
        if file.file_name().to_string_lossy().contains(".so") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    let mut cc = Command::new("cc");
    succeeds(cc.arg("-o").arg(&alone).arg(&source).args(installed.flags(&["--static"])));
    assert_eq!(runs(&alone, 2).matches("the sum of 2 ranks is 3").count(), 2);
}

/// What the other tests rely on: the sanitizers see memory used after it was freed, and a result that is not right fails the program.
#[test]
fn planted_mistakes_are_found() {
    if missing("cc") {
        return;
    }
    let installed = Installed::new();
    let plant = |name: &str, body: &str| {
        let source = installed.0.join(format!("{name}.c"));
        let program = format!(
            "#include \"{}\"\nint main(void) {{ windlass_comm_t comm; OK(windlass_init(&comm)); {body} return 0; }}\n",
            here("tests/c/check.h").display()
        );
        std::fs::write(&source, program).unwrap();
        run(&[], &installed.build(&source, &SANITIZED), 1)
    };
    let used = "float *m = malloc(64); float *volatile n = m; free(m); \
                OK(windlass_all_reduce(NULL, NULL, 0, WINDLASS_F32, WINDLASS_SUM, comm)); n[3] = 1;";
    assert!(plant("used", used).is_err_and(|said| said.contains("heap-use-after-free")));
    assert!(
        plant("accepted", "OK(windlass_barrier(NULL));").is_err_and(|said| said.contains("`comm` is NULL"))
    );
    let words = "REFUSED(WINDLASS_ERROR_INVALID_ARGUMENT, \"a joke\", windlass_barrier(NULL));";
    assert!(plant("words", words).is_err_and(|said| said.contains("does not say `a joke`")));
    assert!(plant("well", "OK(windlass_barrier(comm));").is_ok());
}
