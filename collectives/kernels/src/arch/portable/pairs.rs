//! Values with their places.

use std::cmp::Ordering;

use super::{Lane, Ordered};

/// A value, its place, and what fills the element up.
#[derive(Copy, Clone)]
#[repr(C)]
pub(in crate::arch) struct Pair<V, I, P = ()> {
    value: V,
    index: I,
    padding: P,
}

/// What pairs are ordered by.
pub(in crate::arch) trait Value: Copy {
    fn is_nan(self) -> bool;
    /// The order of those that are no NaN.
    fn order(self, other: Self) -> Ordering;
}

macro_rules! values {
    ($($value:ty: $is_nan:expr, $order:expr;)*) => { $(
        impl Value for $value {
            #[inline(always)]
            fn is_nan(self) -> bool { $is_nan(self) }
            #[inline(always)]
            fn order(self, other: Self) -> Ordering { $order(&self, &other) }
        }
    )* };
}

values! {
    f32: Self::is_nan, Self::total_cmp;
    f64: Self::is_nan, Self::total_cmp;
    i32: |_| false, Ord::cmp;
    i64: |_| false, Ord::cmp;
}

impl<V: Value, I: Copy + Ord, P: Copy + Default> Lane for Pair<V, I, P> {
    type Number = Self;
    const IS_NUMBER: bool = false;
    #[inline(always)]
    fn widen(self) -> Self {
        self
    }
    #[inline(always)]
    fn narrow(number: Self) -> Self {
        Self { padding: P::default(), ..number }
    }
}

impl<V: Value, I: Copy + Ord, P: Copy> Pair<V, I, P> {
    /// The one whose value is a NaN or else stands `first` to the other's; of two that are equal in this, the lower place's.
    #[inline(always)]
    fn choose(self, other: Self, first: Ordering) -> Self {
        let order = match (self.value.is_nan(), other.value.is_nan()) {
            (true, true) => Ordering::Equal,
            (true, false) => first,
            (false, true) => first.reverse(),
            (false, false) => self.value.order(other.value),
        };
        let own = if order == Ordering::Equal { self.index <= other.index } else { order == first };
        if own { self } else { other }
    }
}

impl<V: Value, I: Copy + Ord, P: Copy> Ordered for Pair<V, I, P> {
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.choose(other, Ordering::Less)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.choose(other, Ordering::Greater)
    }
}
