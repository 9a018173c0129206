//! Fetching peers and compiling the loop against them, in a folder of ours.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Launch, Peer, PeerError, Prepared};

/// The sources, shipped inside the binary.
const SOURCES: [(&str, &str); 5] = [
    ("bench.h", include_str!("../../peers/bench.h")),
    ("bench.c", include_str!("../../peers/bench.c")),
    ("mpi.c", include_str!("../../peers/mpi.c")),
    ("allreduce_gloo.cc", include_str!("../../peers/allreduce_gloo.cc")),
    ("allreduce_gloo.py", include_str!("../../peers/allreduce_gloo.py")),
];

const NETWORK: &str = "check the network and the package index, or leave this peer out";
const COMPILER: &str = "install a C and C++ compiler (Debian: `apt-get install g++`)";
const PYTHON: &str = "install Python with venv and pip (Debian: `apt-get install python3-venv`)";
const OPTIMIZE: [&str; 2] = ["-O3", "-march=native"];

pub(super) fn prepare(
    peer: Peer,
    cache: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Prepared, PeerError> {
    fs::create_dir_all(cache).map_err(|error| system("create", cache, &error))?;
    // Compilers and loaders get absolute paths, wherever they are started.
    let cache = fs::canonicalize(cache).map_err(|error| system("resolve", cache, &error))?;
    let mut folder = Folder { sources: write_sources(&cache)?, cache, progress };
    let launch = match peer {
        Peer::OpenMpi | Peer::Mpich => folder.mpi(peer)?,
        Peer::Torch => folder.torch()?,
        Peer::Gloo => folder.gloo().or_else(|error| {
            (folder.progress)(&format!("no Gloo from the system's packages ({error}): trying torch's"));
            folder.torch()
        })?,
    };
    Ok(Prepared { peer, launch })
}

/// The cache, and whom to tell.
struct Folder<'a> {
    cache: PathBuf,
    sources: PathBuf,
    progress: &'a mut dyn FnMut(&str),
}

impl Folder<'_> {
    fn mpi(&mut self, peer: Peer) -> Result<Launch, PeerError> {
        let (package, size) = match peer {
            Peer::OpenMpi => ("openmpi>=5,<6", "7 MB"),
            _ => ("mpich>=5,<6", "13 MB"),
        };
        let home = self.cache.join(peer.name());
        let compiler = home.join("bin/mpicc");
        if !compiler.exists() {
            self.pip_install(&home, &[package], size)?;
        }
        let program = self.sources.join(peer.name());
        if !program.exists() {
            need("cc", COMPILER)?;
            (self.progress)(&format!("compiling {} with its mpicc", peer.name()));
            let fresh = fresh_name(&program);
            let mut compile = Command::new(&compiler);
            compile.args(OPTIMIZE).arg("-o").arg(&fresh);
            compile.args(["mpi.c", "bench.c"].map(|name| self.sources.join(name)));
            run(&mut compile, COMPILER)?;
            publish(&fresh, &program)?;
        }
        // The program pins itself before MPI starts, so that every peer is bound as we are; the launchers
        // would count hyperthreads, containers and cgroups each in its own way.
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
        Ok(match peer {
            Peer::OpenMpi => Launch::Mpi {
                launcher: home.join("bin/mpirun"),
                flags: words(&["--allow-run-as-root", "--bind-to", "none"]),
                crowded_flags: words(&["--map-by", ":OVERSUBSCRIBE"]),
                program,
            },
            _ => Launch::Mpi {
                launcher: home.join("bin/mpiexec"),
                flags: words(&["-bind-to", "none"]),
                // It sleeps where it would spin: an all-reduce takes an eighth of the time then.
                crowded_flags: words(&["-genv", "MPIR_CVAR_CH4_PROGRESS_THROTTLE", "1"]),
                program,
            },
        })
    }

    /// Debian's packages, unpacked without being installed.
    fn gloo(&mut self) -> Result<Launch, PeerError> {
        let home = self.cache.join("gloo");
        if !home.join("usr/include/gloo/allreduce.h").exists() {
            self.unpack_gloo(&home)?;
        }
        let libraries = library_folders(&home);
        let program = self.sources.join("gloo");
        if !program.exists() {
            need("g++", COMPILER)?;
            (self.progress)("compiling gloo with g++");
            let (object, fresh) = (self.sources.join("bench.o"), fresh_name(&program));
            let mut compile = Command::new("cc");
            compile.args(OPTIMIZE).arg("-c").arg("-o").arg(&object).arg(self.sources.join("bench.c"));
            run(&mut compile, COMPILER)?;
            let mut link = Command::new("g++");
            link.args(OPTIMIZE).arg("-o").arg(&fresh).arg("-I").arg(home.join("usr/include"));
            link.arg(self.sources.join("allreduce_gloo.cc")).arg(&object);
            for folder in &libraries {
                link.arg("-L").arg(folder);
            }
            // Its own dependencies are found when it runs.
            link.args(["-lgloo", "-Wl,--allow-shlib-undefined"]);
            run(&mut link, COMPILER)?;
            publish(&fresh, &program)?;
        }
        Ok(Launch::Gloo { program, libraries })
    }

    fn unpack_gloo(&mut self, home: &Path) -> Result<(), PeerError> {
        let fix = "run `apt-get update`, or install torch and compare with `torch`";
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            need(tool, "only Debian and Ubuntu have it")?;
        }
        let depends =
            run(Command::new("apt-cache").args(["depends", "--recurse", "--important", "libgloo0"]), fix)?;
        let mut packages = vec!["libgloo-dev"];
        packages.extend(depends.lines().filter(|line| is_part_of_gloo(line)));
        packages.sort_unstable();
        packages.dedup();
        (self.progress)(&format!(
            "downloading Gloo (1 MB: {}) from the system's package index into {}; nothing is installed",
            packages.join(" "),
            home.display()
        ));
        let fresh = fresh_name(home);
        fs::create_dir_all(&fresh).map_err(|error| system("create", &fresh, &error))?;
        run(Command::new("apt-get").arg("download").args(&packages).current_dir(&fresh), fix)?;
        let entries = fs::read_dir(&fresh).map_err(|error| system("read", &fresh, &error))?;
        let archives: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension() == Some(OsStr::new("deb")))
            .collect();
        for archive in archives {
            run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&fresh), fix)?;
        }
        publish(&fresh, home)
    }

    fn torch(&mut self) -> Result<Launch, PeerError> {
        let library = self.sources.join("bench.so");
        if !library.exists() {
            need("cc", COMPILER)?;
            let fresh = fresh_name(&library);
            let mut compile = Command::new("cc");
            compile.args(OPTIMIZE).args(["-shared", "-fPIC", "-o"]).arg(&fresh);
            run(compile.arg(self.sources.join("bench.c")), COMPILER)?;
            publish(&fresh, &library)?;
        }
        let script = self.sources.join("allreduce_gloo.py");
        need("python3", PYTHON)?;
        if imports_torch(Path::new("python3")) {
            return Ok(Launch::Torch { python: "python3".into(), script, library });
        }
        let home = self.cache.join("torch");
        let python = home.join("bin/python");
        if !imports_torch(&python) {
            self.pip_install(&home, &["torch", "numpy"], "3 GB, 6 GB on disk")?;
        }
        Ok(Launch::Torch { python, script, library })
    }

    fn pip_install(&mut self, home: &Path, packages: &[&str], size: &str) -> Result<(), PeerError> {
        need("python3", PYTHON)?;
        let list = packages.join(" ");
        (self.progress)(&format!("installing {list} ({size}) from PyPI into {}", home.display()));
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(home), PYTHON)?;
        let mut pip = Command::new(home.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
        run(pip.args(packages), NETWORK)?;
        Ok(())
    }
}

/// What Gloo's library links to and a plain system may lack.
fn is_part_of_gloo(package: &str) -> bool {
    ["libgloo0", "libhiredis", "libibverbs1", "libnl-3-", "libnl-route-3-"]
        .iter()
        .any(|start| package.starts_with(start))
}

/// Where unpacked packages keep their libraries: in both trees, and per architecture.
fn library_folders(home: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for tree in ["usr/lib", "lib"].map(|tree| home.join(tree)) {
        let inner = fs::read_dir(&tree).into_iter().flatten().flatten().map(|entry| entry.path());
        folders.extend(inner.filter(|path| path.is_dir() && path.to_string_lossy().contains("-linux-")));
        if tree.is_dir() {
            folders.push(tree);
        }
    }
    folders
}

/// The sources in a folder named after their content, so that a newer windlass compiles anew.
fn write_sources(cache: &Path) -> Result<PathBuf, PeerError> {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in SOURCES.iter().flat_map(|(name, text)| name.bytes().chain(text.bytes())) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let folder = cache.join(format!("loop-{hash:016x}"));
    fs::create_dir_all(&folder).map_err(|error| system("create", &folder, &error))?;
    for (name, text) in SOURCES {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| system("write", &path, &error))?;
    }
    Ok(folder)
}

fn imports_torch(python: &Path) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", "import torch.distributed as d; assert d.is_gloo_available()"]);
    command.stdin(Stdio::null()).output().is_ok_and(|output| output.status.success())
}

/// A name beside `path` that no other process uses: what exists under `path` is always complete.
fn fresh_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

fn publish(fresh: &Path, path: &Path) -> Result<(), PeerError> {
    fs::rename(fresh, path).map_err(|error| system("put in place", path, &error))
}

fn need(tool: &str, fix: &str) -> Result<(), PeerError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()) {
        return Ok(());
    }
    Err(PeerError::Missing { tool: tool.to_owned(), fix: fix.to_owned() })
}

/// Runs a step to its end; gives its standard output.
fn run(command: &mut Command, fix: &str) -> Result<String, PeerError> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let spelled = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let failed = |output: String| PeerError::Install {
        command: spelled.clone(),
        output: last_lines(&output),
        fix: fix.to_owned(),
    };
    let output = command.stdin(Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The end of what a program said, on one line.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0 => "it said nothing".to_owned(),
        count => lines[count.saturating_sub(4)..].join(" | "),
    }
}

pub(super) fn system(verb: &str, path: &Path, error: &std::io::Error) -> PeerError {
    PeerError::System { what: format!("cannot {verb} {}", path.display()), error: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_collective_has_a_row_in_the_loop_and_a_case_of_mpi() {
        let [_, (_, rows), (_, cases), ..] = SOURCES;
        for collective in windlass::Collective::ALL {
            // A receive is the other half of a send; and blocks of different lengths have no size to be measured at.
            if *collective == windlass::Collective::Recv || collective.is_uneven() {
                continue;
            }
            let code = format!("BENCH_{}", collective.name().to_uppercase());
            let extents = format!("{:?}, {:?}", collective.input(), collective.output());
            let extents = extents.replace("AtRoot", "_AT_ROOT").to_uppercase();
            let row = format!("[{code}] = {{\"{collective}\", {extents}, ");
            assert!(rows.contains(&row), "{row}");
            assert!(cases.contains(&format!("case {code}: ")), "{code}");
        }
    }

    #[test]
    fn only_what_gloo_needs_is_fetched() {
        let listed = "libgloo0\n  Depends: libc6\nlibhiredis0.14\nlibc6\nlibnl-3-200\nlibnl-route-3-200";
        let kept: Vec<&str> = listed.lines().filter(|line| is_part_of_gloo(line)).collect();
        assert_eq!(kept, ["libgloo0", "libhiredis0.14", "libnl-3-200", "libnl-route-3-200"]);
    }

    #[test]
    fn a_failing_step_names_itself_its_output_and_the_fix() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo why >&2; exit 3"]);
        let error = run(&mut command, "try again").unwrap_err();
        let PeerError::Install { command, output, fix } = error else { panic!("{error}") };
        assert!(command.starts_with("sh -c"));
        assert_eq!((output.as_str(), fix.as_str()), ("why", "try again"));
    }

    #[test]
    fn a_missing_tool_is_named() {
        let error = need("no-such-tool-anywhere", "get it").unwrap_err();
        assert_eq!(error.to_string(), "no-such-tool-anywhere is not installed; get it");
    }
}
