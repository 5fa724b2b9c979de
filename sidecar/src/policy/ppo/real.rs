//! The two kinds of number that the network is written for: `f32` runs, `f64` proves.
//!
//! Everything that learns is generic over [`Real`], so that finite differences can check in double
//! precision the very code that runs in single precision.

use ndarray::NdFloat;

/// A floating point number that networks are made of.
pub trait Real: NdFloat + Default {
    /// Returns `value`, rounded.
    fn of(value: f64) -> Self;

    /// Returns this number as an `f64`, exactly.
    fn wide(self) -> f64;

    /// Replaces every value by its hyperbolic tangent. A NaN stays one.
    fn tanh_all(values: &mut [Self]);
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn wide(self) -> f64 {
        self
    }

    fn tanh_all(values: &mut [Self]) {
        for value in values {
            *value = value.tanh();
        }
    }
}

impl Real for f32 {
    #[allow(clippy::cast_possible_truncation, reason = "rounding is what it is for")]
    fn of(value: f64) -> Self {
        value as Self
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn tanh_all(values: &mut [Self]) {
        for value in values {
            *value = tanh(*value);
        }
    }
}

/// Below this, 2^x adds nothing to 1: the tangent is 1.
const EXPONENT_MIN: f32 = -60.0;

/// 1.5 × 2^23: a sum with it has no room for a fraction, so its last bits are the whole number.
const ROUND: f32 = 12_582_912.0;

/// (ln 2)^k / k!, k = 1..=8: the Taylor coefficients of 2^f − 1. For |f| ≤ ½ what follows is below 10⁻⁹.
const POWERS: [f32; 8] = [
    std::f32::consts::LN_2,
    0.240_226_5,
    0.055_504_11,
    0.009_618_129,
    0.001_333_355_8,
    0.000_154_035_3,
    0.000_015_252_734,
    0.000_001_321_548_7,
];

/// Returns tanh `x` = −q / (2 + q) with q = e^(−2|x|) − 1, to a few units in the last place.
///
/// It has no branch, so the compiler makes vector code of a loop over it (128 calls are most of what
/// a decision costs), and is made of sums and products only, so that it gives the same bits everywhere.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let t = -2.0 * std::f32::consts::LOG2_E * x.abs();
    // Not `max`, which would make a number of a NaN.
    let t = if t < EXPONENT_MIN { EXPONENT_MIN } else { t };
    let rounded = t + ROUND;
    let f = t - (rounded - ROUND);
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    let [a, b, c, d, e, g, h, i] = POWERS;
    let fraction = f * (a + f * (b + f * (c + f * (d + f * (e + f * (g + f * (h + f * i)))))));
    let q = power * fraction + (power - 1.0);
    (-q / (2.0 + q)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_in_single_precision_is_right_to_a_few_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for n in -400_000..=400_000_i32 {
            #[allow(clippy::cast_precision_loss)]
            let x = n as f32 * 5e-5;
            let exact = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - exact).abs() / exact.abs().max(1e-30);
            worst = worst.max(if n == 0 { 0.0 } else { error });
        }
        assert!(worst < 4.0 * f64::from(f32::EPSILON), "relative error {worst:e}");
        for exponent in -35..5 {
            let x = 10.0_f32.powi(exponent);
            assert!((f64::from(tanh(x)) / f64::from(x).tanh() - 1.0).abs() < 5e-7, "{x}");
        }
    }

    #[test]
    fn tanh_is_odd_saturates_and_keeps_a_nan() {
        assert_eq!([tanh(0.0), tanh(40.0), tanh(f32::MAX)], [0.0, 1.0, 1.0]);
        assert_eq!([tanh(-1e30), tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)], [-1.0, 1.0, -1.0]);
        assert_eq!(tanh(-0.7), -tanh(0.7));
        assert!(tanh(f32::NAN).is_nan());
    }
}
