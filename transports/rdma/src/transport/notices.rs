//! What NICs tell without being asked: ports that go down and come back, and NICs that are removed.
//!
//! What they tell of single queue pairs is taken and left: completions say the same, and more.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use windlass_transports::{LostCause, Rank};

use super::Rdma;
use super::connections::{Standing, failed};
use crate::lanes::Rails;
use crate::verbs;

/// How often the NICs are asked, while there is nothing else to do.
const EACH: Duration = Duration::from_millis(1);

impl Rdma {
    /// Hears what NICs tell, unless they were asked just before. Whether there was anything.
    pub(super) fn notice(&mut self) -> bool {
        let now = Instant::now();
        if self.noticed.is_some_and(|noticed| now.saturating_duration_since(noticed) < EACH) {
            return false;
        }
        self.noticed = Some(now);
        let mut moved = false;
        for at in 0..self.rails.len() {
            while let Some(rail) = &self.rails[at] {
                let port = rail.attachment.port;
                match rail.device.next_event() {
                    Ok(None) => break,
                    Ok(Some(verbs::Event::DeviceFatal)) => {
                        let errno = rustix::io::Errno::NODEV.raw_os_error();
                        let gone =
                            LostCause::Device { what: "this rank's NIC is broken, or was removed", errno };
                        self.lose_rail(at, &gone);
                    }
                    Ok(Some(verbs::Event::PortError { port: of })) if of == port => self.port_went_down(at),
                    Ok(Some(verbs::Event::PortActive { port: of })) if of == port => self.port_came_back(at),
                    Ok(Some(_)) => {}
                    Err(error) => self.lose_rail(at, &failed(&error)),
                }
                moved = true;
            }
        }
        moved
    }

    /// Connections go on by other NICs at once, where there are any; otherwise the NIC goes on trying for a while.
    fn port_went_down(&mut self, at: usize) {
        self.rails[at].iter_mut().for_each(|rail| rail.up = false);
        let errno = rustix::io::Errno::NETDOWN.raw_os_error();
        for peer in self.peers_by(at) {
            if !self.rails_to(peer, None).contains(at) {
                self.break_off(peer, LostCause::Device { what: "this rank's port is down", errno });
            }
        }
    }

    /// Connections that lack it are made anew.
    fn port_came_back(&mut self, at: usize) {
        let was_down = self.rails[at].iter_mut().any(|rail| !std::mem::replace(&mut rail.up, true));
        let errno = rustix::io::Errno::CANCELED.raw_os_error();
        for peer in 0..self.peers.len() as Rank {
            let entry = &mut self.peers[peer as usize];
            entry.record.forgive(Rails::default().with(at));
            let lacks = entry.end.as_ref().is_some_and(|end| !end.rails().contains(at));
            if was_down && lacks && entry.standing == Standing::Open && self.rails_to(peer, None).contains(at)
            {
                self.break_off(peer, LostCause::Device { what: "a NIC is back, and is to be used", errno });
            }
        }
    }

    /// A NIC is no more. All that was made of it is destroyed, so that nobody waits for this process to let go of it.
    pub(super) fn lose_rail(&mut self, at: usize, cause: &LostCause) {
        for peer in self.peers_by(at) {
            self.break_off(peer, cause.clone());
        }
        if let Some(rail) = self.rails[at].take() {
            // A descriptor that does not close, because the device refuses, is ready for ever.
            let _ = epoll::delete(&self.epoll, rail.channel.descriptor());
            let _ = epoll::delete(self.alarm.as_fd(), rail.device.event_descriptor());
        }
    }

    /// The peers whose connections use a NIC.
    fn peers_by(&self, at: usize) -> Vec<Rank> {
        let uses = |rank: &Rank| {
            let end = self.peers[*rank as usize].end.as_ref();
            end.is_some_and(|end| end.rails().contains(at))
        };
        (0..self.peers.len() as Rank).filter(uses).collect()
    }
}
