//! What the kernels are compared with: one element at a time, written for clarity, sharing nothing with the crate.

use windlass_kernels::{Combine, DataType, Level, ReduceOp, Store, bf16, f16};

/// The levels that this CPU has.
pub(crate) fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.iter().copied().filter(|level| level.is_available())
}

/// The minimum as the documentation words it: NaN wins, and -0.0 is below +0.0.
fn least<F: Copy + PartialOrd>(a: F, b: F, is_nan: fn(F) -> bool, is_negative: fn(F) -> bool) -> F {
    match a.partial_cmp(&b) {
        None => [a, b].into_iter().find(|&x| is_nan(x)).expect("only a NaN is not ordered"),
        Some(std::cmp::Ordering::Less) => a,
        Some(std::cmp::Ordering::Greater) => b,
        Some(std::cmp::Ordering::Equal) => [a, b].into_iter().find(|&x| is_negative(x)).unwrap_or(a),
    }
}

macro_rules! float_reference {
    ($name:ident, $float:ty) => {
        fn $name(values: &[$float], op: ReduceOp, divisor: u64) -> $float {
            let min = |a, b| least::<$float>(a, b, <$float>::is_nan, <$float>::is_sign_negative);
            let mut total = values[0];
            for &value in &values[1..] {
                total = match op {
                    ReduceOp::Sum | ReduceOp::Avg => total + value,
                    ReduceOp::Prod => total * value,
                    ReduceOp::Min => min(total, value),
                    ReduceOp::Max => -min(-total, -value),
                    _ => panic!("no reference for {op}"),
                };
            }
            if op == ReduceOp::Avg && divisor > 1 { total / divisor as $float } else { total }
        }
    };
}
float_reference!(fold_f32, f32);
float_reference!(fold_f64, f64);

/// Exact arithmetic, wrapped into `bits` bits after every input; the division is exact too.
fn fold_integers(values: &[i128], op: ReduceOp, divisor: u64, bits: u32, signed: bool) -> i128 {
    let wrap = |x: i128| {
        let low = x & ((1 << bits) - 1);
        if signed && low >> (bits - 1) == 1 { low - (1 << bits) } else { low }
    };
    let mut total = values[0];
    for &value in &values[1..] {
        total = match op {
            ReduceOp::Sum | ReduceOp::Avg => wrap(total + value),
            ReduceOp::Prod => wrap(total.wrapping_mul(value)),
            ReduceOp::Min => total.min(value),
            ReduceOp::Max => total.max(value),
            _ => panic!("no reference for {op}"),
        };
    }
    if op == ReduceOp::Avg && divisor > 1 { total / i128::from(divisor) } else { total }
}

/// One element of the result, from that element of every input.
pub(crate) fn fold(data_type: DataType, op: ReduceOp, divisor: u64, elements: &[&[u8]]) -> Vec<u8> {
    macro_rules! read {
        ($number:ty, $convert:expr) => {
            elements
                .iter()
                .map(|bytes| $convert(<$number>::from_ne_bytes((*bytes).try_into().expect("one element"))))
                .collect::<Vec<_>>()
        };
    }
    match data_type {
        DataType::U8 => vec![fold_integers(&read!(u8, i128::from), op, divisor, 8, false) as u8],
        DataType::I32 => {
            (fold_integers(&read!(i32, i128::from), op, divisor, 32, true) as i32).to_ne_bytes().into()
        }
        DataType::I64 => {
            (fold_integers(&read!(i64, i128::from), op, divisor, 64, true) as i64).to_ne_bytes().into()
        }
        DataType::F16 => f16::from_f32(fold_f32(&read!(f16, f16::to_f32), op, divisor)).to_ne_bytes().into(),
        DataType::BF16 => {
            bf16::from_f32(fold_f32(&read!(bf16, bf16::to_f32), op, divisor)).to_ne_bytes().into()
        }
        DataType::F32 => fold_f32(&read!(f32, f32::from), op, divisor).to_ne_bytes().into(),
        DataType::F64 => fold_f64(&read!(f64, f64::from), op, divisor).to_ne_bytes().into(),
        _ => panic!("no reference for {data_type}"),
    }
}

/// Whether two elements are the same to the bit, or both NaN.
pub(crate) fn same(data_type: DataType, a: &[u8], b: &[u8]) -> bool {
    a == b || is_nan(data_type, a) && is_nan(data_type, b)
}

/// Whether an element is a NaN; integers never are.
pub(crate) fn is_nan(data_type: DataType, element: &[u8]) -> bool {
    let array = || element.try_into().expect("one element");
    match data_type {
        DataType::F16 => f16::from_ne_bytes(element.try_into().expect("one element")).is_nan(),
        DataType::BF16 => bf16::from_ne_bytes(element.try_into().expect("one element")).is_nan(),
        DataType::F32 => f32::from_ne_bytes(array()).is_nan(),
        DataType::F64 => f64::from_ne_bytes(element.try_into().expect("one element")).is_nan(),
        _ => false,
    }
}

/// Pseudo-random numbers (xorshift64*): reproducible, and quick in a debug build.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Bytes of `count` elements: mostly numbers of moderate size, so that sums round rather than overflow, one in
/// eight any bit pattern, and a few zeros of both signs, infinities and NaNs.
pub(crate) fn elements(data_type: DataType, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * data_type.size_bytes());
    for _ in 0..count {
        let raw = random.next();
        let moderate = ((raw >> 40) as i32 - (1 << 23)) as f32 / 65536.0;
        let special =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0, -1.0, 1e-40][raw as usize >> 8 & 7];
        let (any, value) = match raw & 31 {
            0..4 => (true, 0.0),
            4 => (false, special),
            _ => (false, moderate),
        };
        let pattern = raw.rotate_left(17);
        match data_type {
            DataType::F16 if !any => bytes.extend(f16::from_f32(value).to_ne_bytes()),
            DataType::BF16 if !any => bytes.extend(bf16::from_f32(value).to_ne_bytes()),
            DataType::F32 if !any => bytes.extend(value.to_ne_bytes()),
            DataType::F64 if !any => bytes.extend((f64::from(value) * 1.000_000_1).to_ne_bytes()),
            _ => bytes.extend(&pattern.to_ne_bytes()[..data_type.size_bytes()]),
        }
    }
    bytes
}

/// What the bytes around an output are; they must still be that afterwards.
const GUARD: u8 = 0xa5;
/// Guard bytes on each side: more than any register is long.
const MARGIN: usize = 96;

/// A range of bytes at a chosen misalignment, with guards on both sides.
#[derive(Clone)]
pub(crate) struct Guarded {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    /// `misalignment` is from an address that is a multiple of 64.
    pub(crate) fn new(len: usize, misalignment: usize) -> Self {
        let bytes = vec![GUARD; len + 2 * MARGIN + 64 + misalignment];
        let start = MARGIN + (bytes.as_ptr().addr() + MARGIN).wrapping_neg() % 64 + misalignment;
        Self { bytes, start, len }
    }

    pub(crate) fn holding(content: &[u8], misalignment: usize) -> Self {
        let mut new = Self::new(content.len(), misalignment);
        let range = new.start..new.start + new.len;
        new.bytes[range].copy_from_slice(content);
        new
    }

    pub(crate) fn content(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub(crate) fn pointer(&mut self) -> *mut u8 {
        self.bytes[self.start..].as_mut_ptr()
    }

    pub(crate) fn guards_are_whole(&self) -> bool {
        let (before, rest) = self.bytes.split_at(self.start);
        before.iter().chain(&rest[self.len..]).all(|&byte| byte == GUARD)
    }
}

/// One run of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub data_type: DataType,
    /// `None` is a copy.
    pub op: Option<ReduceOp>,
    pub(crate) level: Level,
    pub outputs: usize,
    pub count: usize,
    pub divisor: u64,
    pub store: Store,
    /// Output j is `misalignment` times j + 1 off.
    pub misalignment: usize,
    /// The first outputs are the first inputs.
    pub in_place: bool,
}

impl Case {
    fn combine(&self) -> Combine {
        let best =
            self.op.map_or_else(|| Combine::copy(self.data_type), |op| Combine::reduce(self.data_type, op));
        best.with_level(self.level).expect("tests ask for available levels")
    }

    /// Runs the kernel on `inputs` and gives every output's bytes. Panics when a guard was touched, or an input
    /// that is no output.
    pub(crate) fn run(&self, inputs: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let bytes = self.count * self.data_type.size_bytes();
        let offset = |position: usize| self.misalignment * (position + 1) % 64;
        let shared = if self.in_place { self.outputs.min(inputs.len()) } else { 0 };
        let mut sources: Vec<_> = inputs
            .iter()
            .enumerate()
            .map(|(i, input)| Guarded::holding(&input[..bytes], offset(i)))
            .collect();
        let mut targets: Vec<_> = (shared..self.outputs).map(|j| Guarded::new(bytes, offset(j))).collect();
        let pointers: Vec<*mut u8> = sources.iter_mut().map(Guarded::pointer).collect();
        let outputs: Vec<*mut u8> =
            pointers[..shared].iter().copied().chain(targets.iter_mut().map(Guarded::pointer)).collect();
        let read: Vec<*const u8> = pointers.iter().map(|pointer| pointer.cast_const()).collect();
        // SAFETY: each pointer is to `bytes` bytes of a vector of its own that lives and is untouched during the
        // call; the first `shared` outputs are exactly inputs.
        unsafe { self.combine().run(&read, &outputs, self.count, self.divisor, self.store) };

        for guarded in sources.iter().chain(&targets) {
            assert!(guarded.guards_are_whole(), "bytes beyond the range were written: {self:?}");
        }
        for (source, input) in sources.iter().zip(inputs).skip(shared) {
            assert!(source.content() == &input[..bytes], "an input was written: {self:?}");
        }
        sources[..shared].iter().chain(&targets).map(|guarded| guarded.content().to_vec()).collect()
    }

    /// What every output should hold.
    pub(crate) fn expected(&self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let size = self.data_type.size_bytes();
        let Some(op) = self.op else { return inputs[0][..self.count * size].to_vec() };
        (0..self.count)
            .flat_map(|e| {
                let elements: Vec<&[u8]> = inputs.iter().map(|input| &input[e * size..][..size]).collect();
                fold(self.data_type, op, self.divisor, &elements)
            })
            .collect()
    }

    /// The first difference between an output and what it should hold, in words.
    pub(crate) fn difference(&self, expected: &[u8], output: &[u8]) -> Option<String> {
        let size = self.data_type.size_bytes();
        if expected.len() != output.len() {
            return Some(format!("{} bytes instead of {}", output.len(), expected.len()));
        }
        let pairs = expected.chunks_exact(size).zip(output.chunks_exact(size));
        let exact = self.op.is_none();
        pairs.enumerate().find_map(|(e, (right, ours))| {
            let equal = if exact { right == ours } else { same(self.data_type, right, ours) };
            (!equal).then(|| format!("element {e}: {ours:02x?} instead of {right:02x?}"))
        })
    }

    /// Runs and compares every output.
    pub(crate) fn check_against(&self, inputs: &[Vec<u8>], expected: &[u8]) {
        for (j, output) in self.run(inputs).iter().enumerate() {
            if let Some(difference) = self.difference(expected, output) {
                panic!("output {j}, {difference}; {} inputs, {self:?}", inputs.len());
            }
        }
    }
}
