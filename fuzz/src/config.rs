//! One byte that says which of the two files, then its text.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use windlass::{Config, ModelFile};

/// The configuration is read as a job reads it: from a file that the environment names.
pub fn run(bytes: &[u8]) {
    let Some((&which, text)) = bytes.split_first() else { return };
    if which & 1 == 0 {
        let Ok(text) = std::str::from_utf8(text) else { return };
        if let Ok(model) = ModelFile::parse(text) {
            assert_eq!(ModelFile::parse(&ModelFile::from(model).to_text()), Ok(model));
        }
        return;
    }
    // A setting may name another file, which is nobody's to open here.
    if text.windows(5).any(|word| word == b"model") || text.contains(&b'\\') {
        return;
    }
    let file = file();
    ftruncate(file, 0).expect("a memfd shrinks");
    rustix::io::pwrite(file, text, 0).expect("a memfd grows");
    match Config::from_environment() {
        Ok(config) => assert!(config.settings().count() > 0),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn file() -> &'static OwnedFd {
    static FILE: OnceLock<OwnedFd> = OnceLock::new();
    FILE.get_or_init(|| {
        let file = memfd_create("config", MemfdFlags::CLOEXEC).expect("a memfd");
        // SAFETY: the fuzzer runs its target on one thread, and this is its first call.
        unsafe { std::env::set_var("WINDLASS_CONFIG", format!("/proc/self/fd/{}", file.as_raw_fd())) };
        file
    })
}
