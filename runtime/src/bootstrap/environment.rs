//! Who this process is, whoever started it.

use crate::error::JoinError;

/// A process's place in its job.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Its rank.
    pub rank: u32,
    /// The number of ranks.
    pub ranks: u32,
    /// Where the rendezvous is; `None` for a job of one.
    pub rendezvous: Option<String>,
    /// Whether this process holds the rendezvous, because no launcher does.
    pub serves: bool,
}

impl Identity {
    /// Reads the environment: `RANK` and `WORLD_SIZE` with `WINDLASS_RENDEZVOUS` (from `windlass run`) or with `MASTER_ADDR` and
    /// `MASTER_PORT` (torchrun's). A `MASTER_ADDR` that begins with `/` is a folder, for ranks that do not share a network namespace. Without
    /// `WORLD_SIZE` the process is a job of one.
    ///
    /// # Errors
    /// When a variable is missing or wrong: the message names it.
    pub fn from_environment() -> Result<Self, JoinError> {
        Self::read(|name| std::env::var(name).ok(), rustix::process::getuid().as_raw())
    }

    fn read(variable: impl Fn(&str) -> Option<String>, uid: u32) -> Result<Self, JoinError> {
        let wrong = |name, value, problem| JoinError::Environment { variable: name, value, problem };
        let number = |name: &'static str| match variable(name) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u32>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(wrong(name, Some(text), "must be a number, not negative")),
            },
        };
        let Some(ranks) = number("WORLD_SIZE")? else {
            if variable("WINDLASS_RENDEZVOUS").is_some() {
                return Err(wrong(
                    "WORLD_SIZE",
                    None,
                    "is missing although WINDLASS_RENDEZVOUS is set; start with `windlass run`",
                ));
            }
            return Ok(Self { rank: 0, ranks: 1, rendezvous: None, serves: false });
        };
        if ranks == 0 || ranks > 1 << 20 {
            return Err(wrong("WORLD_SIZE", Some(ranks.to_string()), "must be 1 to 1048576"));
        }
        let rank =
            number("RANK")?.ok_or_else(|| wrong("RANK", None, "is missing although WORLD_SIZE is set"))?;
        if rank >= ranks {
            return Err(wrong("RANK", Some(rank.to_string()), "must be below WORLD_SIZE"));
        }
        if let Some(address) = variable("WINDLASS_RENDEZVOUS") {
            return Ok(Self { rank, ranks, rendezvous: Some(address), serves: false });
        }
        if ranks == 1 {
            return Ok(Self { rank, ranks, rendezvous: None, serves: false });
        }
        let need = |name: &'static str| {
            let problem =
                "is missing: start with `windlass run`, or set MASTER_ADDR and MASTER_PORT as torchrun does";
            variable(name).ok_or_else(|| wrong(name, None, problem))
        };
        let (host, port) = (need("MASTER_ADDR")?, need("MASTER_PORT")?);
        let job = variable("TORCHELASTIC_RUN_ID").unwrap_or_default();
        if host.starts_with('/') {
            // A folder that all ranks see, though each may have a network namespace of its own.
            let rendezvous = Some(format!("unix:{host}/windlass-{uid}-{port}-{job}"));
            return Ok(Self { rank, ranks, rendezvous, serves: rank == 0 });
        }
        let name = format!("windlass-{uid}-{host}-{port}-{job}");
        let rendezvous = Some(super::socket::format_address(&shortened(name)));
        Ok(Self { rank, ranks, rendezvous, serves: rank == 0 })
    }
}

/// A name that fits into a socket's address. A long one ends with a hash of the whole, so that jobs stay apart.
fn shortened(name: String) -> String {
    if name.len() <= 100 {
        return name;
    }
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{}{hash:016x}", &name[..name.floor_char_boundary(84)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Identity, JoinError> {
        Identity::read(|n| pairs.iter().find(|(k, _)| *k == n).map(|(_, v)| (*v).to_owned()), 5)
    }

    #[test]
    fn a_process_alone_is_a_job_of_one() {
        assert_eq!(read(&[]).unwrap().ranks, 1);
        assert_eq!(read(&[("WORLD_SIZE", "1"), ("RANK", "0")]).unwrap().rendezvous, None);
    }

    #[test]
    fn the_launcher_s_rendezvous_is_used_and_torchrun_s_derived() {
        let ours = read(&[("WORLD_SIZE", "2"), ("RANK", "1"), ("WINDLASS_RENDEZVOUS", "unix:@x")]).unwrap();
        assert_eq!((ours.rendezvous.as_deref(), ours.serves), (Some("unix:@x"), false));
        let torch = [("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "9")];
        let torch = read(&torch).unwrap();
        assert_eq!((torch.rendezvous.as_deref(), torch.serves), (Some("unix:@windlass-5-a-9-"), true));
        let folder = [("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "/run/a"), ("MASTER_PORT", "9")];
        let folder = read(&folder).unwrap();
        assert_eq!((folder.rendezvous.as_deref(), folder.serves), (Some("unix:/run/a/windlass-5-9-"), false));
    }

    #[test]
    fn long_names_fit_and_stay_apart() {
        let name = |run: &str| {
            let long = format!("{}{run}", "ä".repeat(70));
            let pairs = [
                ("WORLD_SIZE", "2"),
                ("RANK", "0"),
                ("MASTER_ADDR", "a"),
                ("MASTER_PORT", "9"),
                ("TORCHELASTIC_RUN_ID", &long),
            ];
            read(&pairs).unwrap().rendezvous.unwrap()
        };
        assert!(name("1").len() <= "unix:@".len() + 100 && name("1") != name("2"));
    }

    #[test]
    fn wrong_variables_are_named() {
        for (pairs, name) in [
            (&[("WORLD_SIZE", "two"), ("RANK", "0")][..], "WORLD_SIZE"),
            (&[("WORLD_SIZE", "0"), ("RANK", "0")], "WORLD_SIZE"),
            (&[("WORLD_SIZE", "2")], "RANK"),
            (&[("WORLD_SIZE", "2"), ("RANK", "2")], "RANK"),
            (&[("WORLD_SIZE", "2"), ("RANK", "1")], "MASTER_ADDR"),
            (&[("WINDLASS_RENDEZVOUS", "unix:@x")], "WORLD_SIZE"),
        ] {
            assert!(read(pairs).unwrap_err().to_string().contains(name));
        }
    }
}
