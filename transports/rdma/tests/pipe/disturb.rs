//! What happens besides messages: withdrawals, and memory that is taken back, leaves, and comes back or does not.

use windlass_transports::Token;

use super::{Fault, Operation, Walk};

impl Walk {
    /// What was under way from or to the memory of an operation is fenced. Says whether the operation is live still: what was leaving from a copy ends.
    fn fence(&mut self, token: u64) -> bool {
        self.break_at(self.live[&token].rank);
        self.live.contains_key(&token)
    }

    pub(super) fn cancel(&mut self, token: u64) {
        if self.live[&token].is_send || !self.only_sends {
            self.withdraw(token);
        }
    }

    pub(super) fn withdraw(&mut self, token: u64) {
        let rank = self.live[&token].rank;
        let exposed = self.ends[rank].open && self.ends[rank].link.exposes(Token(token));
        if exposed && self.fault != Fault::NoFence && !self.fence(token) {
            return;
        }
        assert!(self.ends[rank].link.withdraw(Token(token)));
        self.seen.lost += u64::from(self.live[&token].is_send && self.memories.is_away(token));
        if let Some(Operation { rank, identity, is_send }) = self.live.remove(&token) {
            self.memories.remove(token);
            if is_send {
                // It may have reached the peer, so its identity is used up.
                self.ended.insert((rank, identity, true), 1);
            }
            self.spoilt.push(identity);
        }
    }

    /// What is left has lost its other half: nobody awaits anything once it is withdrawn, too.
    pub(super) fn leave(&mut self) {
        let mut left: Vec<u64> = self.live.keys().copied().collect();
        left.sort_unstable();
        for token in left {
            if self.live.contains_key(&token) {
                self.withdraw(token);
            }
        }
        for _ in 0..300 {
            self.mend();
            for rank in 0..2 {
                self.poll(rank);
                (0..8).for_each(|_| self.carry(rank));
            }
        }
        for end in self.ends.iter().filter(|_| self.only_sends) {
            assert!(!end.link.expects() && !end.link.has_output(), "{:?}", end.link);
        }
    }

    /// What a device holds of an operation's memory is taken back, as an owner does that moves it; or it comes back.
    pub(super) fn shift(&mut self, withdrawals: bool) {
        let Some(token) = self.any().filter(|&token| self.held != Some(token)) else { return };
        if self.chance(2) == 0 {
            self.memories.come_back(token);
            if self.chance(2) == 0 && !self.memories.is_registered(token) {
                self.memories.register(token);
            }
            return;
        }
        if !self.take_back(token) {
            return;
        }
        if self.chance(4) > 0 {
            self.memories.leave(token);
            if withdrawals && self.chance(2) == 0 {
                // It does not come back.
                self.cancel(token);
            }
        }
    }

    /// No device has the memory of an operation any more. Whether that is live still.
    fn take_back(&mut self, token: u64) -> bool {
        let link = &self.ends[self.live[&token].rank].link;
        if link.exposes_any(&|memory| self.memories.holds(token, memory)) && self.fault != Fault::NoRelease {
            self.seen.fenced += 1;
            if !self.fence(token) {
                return false;
            }
        }
        let rank = self.live[&token].rank;
        let within = |memory: *const u8| self.memories.holds(token, memory);
        if self.fault != Fault::NoUnregister {
            self.ends[rank].link.unregister(&within);
        }
        self.memories.forget(token);
        true
    }

    /// The memory of some message that has not left stays away until all others have arrived.
    pub(super) fn hold(&mut self) {
        let mut sends: Vec<u64> = self.live.keys().copied().collect();
        sends.retain(|token| self.live[token].is_send && self.memories.is_foreign(*token));
        sends.sort_unstable();
        let at = self.chance(sends.len().max(1) as u64) as usize;
        let Some(&token) = sends.get(at) else { return };
        if self.take_back(token) {
            self.memories.leave(token);
            self.held = Some(token);
            self.seen.held += 1;
        }
    }
}
