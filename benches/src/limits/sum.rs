//! k inputs, m outputs, one addition per element and input: the only arithmetic of the limits.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{
    __m256, __m512, _mm_sfence, _mm256_add_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_stream_ps,
    _mm512_add_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_stream_ps,
};

/// How wide this machine adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 16 floats.
    Avx512,
    /// 8 floats.
    Avx2,
    /// Whatever the compiler makes of it.
    Portable,
}

impl Width {
    /// The widest that this processor offers.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Adds `count` floats of all inputs, in the order given, and stores the sum to all outputs.
    ///
    /// `streaming` asks for stores that bypass the caches, and a fence after them; it is honoured where the
    /// processor has them and every output is aligned.
    ///
    /// # Safety
    /// Every input is readable and every output writable for `count` floats, and nobody else writes the
    /// inputs or touches the outputs meanwhile. An output may be the same address as an input, but must not
    /// otherwise overlap one. The processor has this width ([`Width::detect`] says so).
    #[inline]
    pub unsafe fn sum(self, inputs: &[*const f32], outputs: &[*mut f32], count: usize, streaming: bool) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's promises, passed on; the processor has AVX-512F.
            Self::Avx512 => unsafe { sum_avx512(inputs, outputs, count, streaming) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's promises, passed on; the processor has AVX2.
            Self::Avx2 => unsafe { sum_avx2(inputs, outputs, count, streaming) },
            // SAFETY: the caller's promises, passed on.
            _ => unsafe { sum_portable(inputs, outputs, count) },
        }
    }
}

/// One register of floats.
trait Vector: Copy {
    const LANES: usize;
    /// # Safety
    /// The processor has the width; `from` is readable for `LANES` floats.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// The processor has the width.
    unsafe fn add(self, other: Self) -> Self;
    /// # Safety
    /// The processor has the width; `to` is writable for `LANES` floats.
    unsafe fn store(self, to: *mut f32);
    /// # Safety
    /// As `store`, and `to` is aligned to the vector.
    unsafe fn stream(self, to: *mut f32);
}

macro_rules! vector {
    ($register:ty, $lanes:literal, $load:ident, $add:ident, $store:ident, $stream:ident) => {
        #[cfg(target_arch = "x86_64")]
        impl Vector for $register {
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: readable and supported, says the caller; the load needs no alignment.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: supported, says the caller.
                unsafe { $add(self, other) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: writable and supported, says the caller; the store needs no alignment.
                unsafe { $store(to, self) }
            }
            #[inline(always)]
            unsafe fn stream(self, to: *mut f32) {
                // SAFETY: writable, aligned and supported, says the caller.
                unsafe { $stream(to.cast(), self) }
            }
        }
    };
}

vector!(__m512, 16, _mm512_loadu_ps, _mm512_add_ps, _mm512_storeu_ps, _mm512_stream_ps);
vector!(__m256, 8, _mm256_loadu_ps, _mm256_add_ps, _mm256_storeu_ps, _mm256_stream_ps);

/// Vectors per round: enough to hide the latency of loads from the other core.
const UNROLL: usize = 4;

/// # Safety
/// As [`Width::sum`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn sum_avx512(inputs: &[*const f32], outputs: &[*mut f32], count: usize, streaming: bool) {
    // SAFETY: the caller's promises, passed on.
    unsafe { sum_shaped::<__m512>(inputs, outputs, count, streaming) }
}

/// # Safety
/// As [`Width::sum`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_avx2(inputs: &[*const f32], outputs: &[*mut f32], count: usize, streaming: bool) {
    // SAFETY: the caller's promises, passed on.
    unsafe { sum_shaped::<__m256>(inputs, outputs, count, streaming) }
}

/// The shapes of two ranks get code of their own: known lengths unroll the loops over inputs and outputs.
///
/// # Safety
/// As [`Width::sum`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_shaped<V: Vector>(inputs: &[*const f32], outputs: &[*mut f32], count: usize, streaming: bool) {
    let aligned = outputs.iter().all(|output| (*output as usize).is_multiple_of(size_of::<V>()));
    // SAFETY: the caller's promises, passed on; streaming only onto aligned outputs. The fence orders the
    // streamed stores before the flag that the caller stores next.
    unsafe {
        match (inputs, outputs, streaming && aligned) {
            (&[a, b], &[x, y], false) => sum_vectors::<V, false>(&[a, b], &[x, y], count),
            (&[a, b], &[x, y], true) => sum_vectors::<V, true>(&[a, b], &[x, y], count),
            (&[a, b], &[x], false) => sum_vectors::<V, false>(&[a, b], &[x], count),
            (&[a], &[x], false) => sum_vectors::<V, false>(&[a], &[x], count),
            (_, _, false) => sum_vectors::<V, false>(inputs, outputs, count),
            (_, _, true) => sum_vectors::<V, true>(inputs, outputs, count),
        }
        if streaming && aligned {
            _mm_sfence();
        }
    }
}

/// # Safety
/// As [`Width::sum`]; with `STREAM` every output is aligned to the vector.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_vectors<V: Vector, const STREAM: bool>(
    inputs: &[*const f32],
    outputs: &[*mut f32],
    count: usize,
) {
    let mut at = 0;
    // SAFETY: `at` plus what a round touches never exceeds `count`, up to which the caller promises access.
    unsafe {
        while at + UNROLL * V::LANES <= count {
            let mut sums = [V::load(inputs[0].add(at)); UNROLL];
            for (k, sum) in sums.iter_mut().enumerate().skip(1) {
                *sum = V::load(inputs[0].add(at + k * V::LANES));
            }
            for input in &inputs[1..] {
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.add(V::load(input.add(at + k * V::LANES)));
                }
            }
            for output in outputs {
                for (k, sum) in sums.iter().enumerate() {
                    let to = output.add(at + k * V::LANES);
                    if STREAM { sum.stream(to) } else { sum.store(to) }
                }
            }
            at += UNROLL * V::LANES;
        }
        while at + V::LANES <= count {
            let mut sum = V::load(inputs[0].add(at));
            for input in &inputs[1..] {
                sum = sum.add(V::load(input.add(at)));
            }
            for output in outputs {
                sum.store(output.add(at));
            }
            at += V::LANES;
        }
        sum_scalars(inputs, outputs, at, count);
    }
}

/// # Safety
/// As [`Width::sum`].
unsafe fn sum_portable(inputs: &[*const f32], outputs: &[*mut f32], count: usize) {
    const BLOCK: usize = 32;
    let mut at = 0;
    while at + BLOCK <= count {
        let mut sums = [0.0_f32; BLOCK];
        // SAFETY: `at + BLOCK` never exceeds `count`, up to which the caller promises access.
        unsafe {
            inputs[0].add(at).copy_to_nonoverlapping(sums.as_mut_ptr(), BLOCK);
            for input in &inputs[1..] {
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum += input.add(at + k).read();
                }
            }
            for output in outputs {
                output.add(at).copy_from_nonoverlapping(sums.as_ptr(), BLOCK);
            }
        }
        at += BLOCK;
    }
    // SAFETY: the caller's promises, passed on.
    unsafe { sum_scalars(inputs, outputs, at, count) }
}

/// # Safety
/// As [`Width::sum`], for the floats from `from` to `to`.
#[inline(always)]
unsafe fn sum_scalars(inputs: &[*const f32], outputs: &[*mut f32], from: usize, to: usize) {
    for at in from..to {
        // SAFETY: `at` is below the count up to which the caller promises access.
        unsafe {
            let mut sum = inputs[0].add(at).read();
            for input in &inputs[1..] {
                sum += input.add(at).read();
            }
            for output in outputs {
                output.add(at).write(sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(width: Width, ranks: usize, outputs: usize, count: usize, streaming: bool) {
        let inputs: Vec<Vec<f32>> =
            (0..ranks).map(|rank| (0..count).map(|i| (i * (rank + 1)) as f32).collect()).collect();
        let mut sums = vec![vec![-1.0_f32; count + 1]; outputs];
        let from: Vec<*const f32> = inputs.iter().map(|input| input.as_ptr()).collect();
        let to: Vec<*mut f32> = sums.iter_mut().map(|output| output.as_mut_ptr()).collect();
        // SAFETY: the vectors hold `count` floats each, are apart and ours; `width` was detected.
        unsafe { width.sum(&from, &to, count, streaming) };
        let weight = ranks * (ranks + 1) / 2;
        for sum in &sums {
            assert!((0..count).all(|i| sum[i] == (i * weight) as f32), "{width:?} {ranks} {count}");
            assert_eq!(sum[count], -1.0, "{width:?} wrote past the end");
        }
    }

    #[test]
    fn every_width_sums_every_count() {
        let widths = match Width::detect() {
            Width::Avx512 => vec![Width::Avx512, Width::Avx2, Width::Portable],
            Width::Avx2 => vec![Width::Avx2, Width::Portable],
            Width::Portable => vec![Width::Portable],
        };
        for width in widths {
            for (ranks, outputs) in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 4)] {
                for count in [0, 1, 7, 16, 31, 64, 65, 257, 1000] {
                    check(width, ranks, outputs, count, false);
                    check(width, ranks, outputs, count, true);
                }
            }
        }
    }
}
