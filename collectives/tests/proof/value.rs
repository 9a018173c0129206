//! A symbolic element: which inputs it sums, in which order, and whether it is final.

/// A bijection of the 64-bit words that looks random.
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A reproducible sequence of words.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Value {
    /// The wrapping sum of the inputs' random weights. An input counted twice or not at all shows.
    pub(crate) sum: u64,
    /// A hash of the expression, which tells a + b from b + a and (a + b) + c from a + (b + c).
    pub(crate) tree: u64,
    /// Whether a final reduction made it: an average has been divided.
    pub(crate) last: bool,
}

impl Value {
    /// Element `element` of the input of `rank` in the `operation`-th operation.
    pub(crate) const fn input(operation: usize, rank: u32, element: u32) -> Self {
        let word = mix(mix(operation as u64 + 1) ^ ((rank as u64) << 32 | element as u64));
        Self { sum: word, tree: mix(word), last: false }
    }
}

/// A reduction under way: operands are added one by one, in order.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    operands: u32,
    sum: u64,
    tree: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, value: Value) -> Result<(), String> {
        if value.last {
            return Err("a reduction reads a value that is final already".to_owned());
        }
        self.sum = self.sum.wrapping_add(value.sum);
        // The whole Combine is one node of the tree, as it rounds once.
        self.tree =
            if self.operands == 0 { value.tree } else { mix(self.tree.rotate_left(17) ^ mix(value.tree)) };
        self.operands += 1;
        Ok(())
    }

    pub(crate) fn result(&self, last: bool) -> Value {
        Value { sum: self.sum, tree: mix(self.tree ^ u64::from(self.operands)), last }
    }
}
