//! How each NIC takes each accelerator's memory: registered, written, read, and moved, if it can be.

use serde::Serialize;

use super::rdma::RdmaRail;

/// An accelerator and a NIC.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// The accelerator, by the name that opens it.
    pub accelerator: &'static str,
    /// The NIC.
    pub device: String,
    /// What was found out.
    pub found: PairFound,
}

/// What trying them has shown.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PairFound {
    /// The memory is registered, and its bytes are right. It never moves.
    Still,
    /// The same, of memory that moves.
    Moves {
        /// `transparent`, `pinned`, `revocable` or `unsafe`.
        mode: PairMode,
        /// After a move that the exporter may refuse.
        shifted: AfterMove,
        /// After one that it may not.
        forced: AfterMove,
        /// After a revoke.
        revoked: AfterMove,
        /// Whether memory that moves without asking goes straight; else by way of the host.
        unasked_is_direct: bool,
    },
    /// Nothing, for this reason.
    Untried {
        /// It.
        error: String,
    },
}

/// How a NIC and an accelerator get on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PairMode {
    /// The NIC follows.
    Transparent,
    /// The memory stays while the NIC holds it; if it is moved all the same, the NIC does not hear of it.
    Pinned,
    /// As above, but the key dies when it is moved all the same.
    Revocable,
    /// The NIC reaches memory that has gone.
    Unsafe,
}

/// What has become of a registration when its memory was moved.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterMove {
    /// The NIC reaches the memory where it is now.
    Follows,
    /// It did not move: the exporter refused.
    Stays {
        /// With this error.
        errno: i32,
    },
    /// The key holds no more.
    Dies {
        /// What whoever uses it is told.
        status: String,
    },
    /// The NIC goes on reaching the place that was left.
    Strays,
}

impl Pair {
    /// Tries all accelerators that open with the NICs that this host uses.
    pub(super) fn gather(rails: &[RdmaRail]) -> Vec<Self> {
        tried::gather(rails)
    }
}

#[cfg(feature = "rdma")]
mod tried {
    use windlass_memory::accelerator::kernel::{Driver, NAMES};
    use windlass_memory::accelerator::{Movement, OpenError};
    use windlass_rdma::selftest::{self, After, Mode, Untried};
    use windlass_rdma::verbs::{Device, Verbs};

    use super::{AfterMove, Pair, PairFound, PairMode};
    use crate::diagnosis::rdma::RdmaRail;

    pub(super) fn gather(rails: &[RdmaRail]) -> Vec<Pair> {
        let Ok(verbs) = Verbs::load() else { return Vec::new() };
        let mut pairs = Vec::new();
        for accelerator in NAMES {
            let driver = match Driver::open(accelerator) {
                Ok(driver) => Ok(driver),
                // Another process has it: it is there, all the same.
                Err(error @ OpenError::NoDevice { errno: libc::EBUSY, .. }) => Err(error.to_string()),
                // What does not open is told of with the nodes.
                Err(_) => continue,
            };
            for rail in rails {
                let found = match &driver {
                    Ok(driver) => found(attempt(&verbs, rail, driver)),
                    Err(error) => PairFound::Untried { error: error.clone() },
                };
                pairs.push(Pair { accelerator, device: rail.device.clone(), found });
            }
        }
        pairs
    }

    fn attempt(verbs: &Verbs, rail: &RdmaRail, driver: &Driver) -> Result<Option<selftest::Moves>, Untried> {
        let device = Device::open(verbs, &rail.device)?;
        let attachment = device.attachment(rail.port, rail.gid_index)?;
        selftest::run(&device, attachment, driver)
    }

    fn found(tried: Result<Option<selftest::Moves>, Untried>) -> PairFound {
        match tried {
            Ok(None) => PairFound::Still,
            Ok(Some(moves)) => PairFound::Moves {
                mode: match moves.mode() {
                    Mode::Transparent => PairMode::Transparent,
                    Mode::Pinned => PairMode::Pinned,
                    Mode::Revocable => PairMode::Revocable,
                    Mode::Unsafe => PairMode::Unsafe,
                },
                shifted: after(moves.shifted),
                forced: after(moves.forced),
                revoked: after(moves.revoked),
                unasked_is_direct: moves.permit(Movement::Revocable),
            },
            Err(error) => PairFound::Untried { error: error.to_string() },
        }
    }

    fn after(after: After) -> AfterMove {
        match after {
            After::Follows => AfterMove::Follows,
            After::Stays { errno } => AfterMove::Stays { errno },
            After::Dies { status } => AfterMove::Dies { status: status.to_string() },
            After::Strays => AfterMove::Strays,
        }
    }
}

#[cfg(not(feature = "rdma"))]
mod tried {
    use super::Pair;
    use crate::diagnosis::rdma::RdmaRail;

    /// This build knows no NICs.
    pub(super) fn gather(_rails: &[RdmaRail]) -> Vec<Pair> {
        Vec::new()
    }
}
