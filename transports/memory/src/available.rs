//! How much memory may still be used.
//!
//! The kernel does not refuse pages of a memfd: it kills somebody when there are none left. So a large request is
//! compared with what it says is available first.

use std::fs::read_to_string;

use crate::MemoryError;

/// Below this, asking costs more than it can save.
const SMALL_BYTES: usize = 8 << 20;

/// An error when `bytes` more cannot be had.
pub(crate) fn check(bytes: usize) -> Result<(), MemoryError> {
    if bytes < SMALL_BYTES || available_bytes().is_none_or(|available| bytes as u64 <= available) {
        return Ok(());
    }
    Err(MemoryError::new("allocation", rustix::io::Errno::NOMEM, bytes))
}

fn available_bytes() -> Option<u64> {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_available(&text));
    [machine, cgroup_available()].into_iter().flatten().min()
}

fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|k| k * 1024)
}

/// What the memory controller (cgroup v2) of this process still allows.
fn cgroup_available() -> Option<u64> {
    let own = read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::"))?;
    let number = |file: &str| -> Option<u64> {
        read_to_string(format!("/sys/fs/cgroup{path}/{file}")).ok()?.trim().parse().ok()
    };
    // `memory.max` reads "max" where there is no limit, which is no number.
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        assert_eq!(meminfo_available("MemTotal: 5 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(meminfo_available("MemTotal: 5 kB\n"), None);
        assert!(available_bytes().is_some_and(|b| b > 0));
    }
}
