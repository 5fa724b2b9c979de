//! Orthogonal first weights: a layer that neither stretches nor flattens what passes through it.
//!
//! Saxe, McClelland and Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep
//! linear neural networks"; for PPO, detail 2 of Huang et al. 2022, "The 37 Implementation Details of
//! Proximal Policy Optimization".

use rand::Rng;

use super::{Real, random::normal};

/// Returns a matrix of `rows` × `columns`, row by row, whose shorter side is orthogonal: WᵀW = `gain`²·I
/// when it is tall, WWᵀ = `gain`²·I when it is wide.
///
/// It is uniform among such matrices (Haar): a normal random matrix, made orthonormal vector by vector
/// (modified Gram-Schmidt, twice over, in double precision), which is its QR factor with positive diagonal.
pub(super) fn orthogonal<R: Real>(
    rows: usize,
    columns: usize,
    gain: f64,
    random: &mut impl Rng,
) -> Vec<R> {
    let (vectors, length) = (rows.min(columns), rows.max(columns));
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(vectors);
    for _ in 0..vectors {
        let mut vector: Vec<f64> = (0..length).map(|_| normal(random)).collect();
        // Once leaves a remainder of rounding that the second pass takes away ("twice is enough").
        for _ in 0..2 {
            for other in &basis {
                let overlap = dot(&vector, other);
                vector.iter_mut().zip(other).for_each(|(v, o)| *v -= overlap * o);
            }
        }
        let norm = dot(&vector, &vector).sqrt();
        vector.iter_mut().for_each(|v| *v /= norm);
        basis.push(vector);
    }
    let entry = |row: usize, column: usize| {
        if rows >= columns { basis[column][row] } else { basis[row][column] }
    };
    (0..rows * columns).map(|n| R::of(gain * entry(n / columns, n % columns))).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::super::random::{Purpose, stream};
    use super::*;

    #[test]
    fn the_shorter_side_of_every_layer_is_orthogonal_at_its_gain() {
        for (rows, columns, gain) in
            [(12, 64, 2.0_f64.sqrt()), (64, 64, 2.0_f64.sqrt()), (64, 1, 0.01), (64, 2, 1.0)]
        {
            let mut random = stream(11, Purpose::Weights, 0);
            let weights = orthogonal::<f64>(rows, columns, gain, &mut random);
            let weights = Array2::from_shape_vec((rows, columns), weights).unwrap();
            let gram =
                if rows >= columns { weights.t().dot(&weights) } else { weights.dot(&weights.t()) };
            for ((i, j), &found) in gram.indexed_iter() {
                let expected = if i == j { gain * gain } else { 0.0 };
                assert!((found - expected).abs() < 1e-12, "{rows}x{columns} [{i}, {j}]: {found}");
            }
        }
    }

    #[test]
    fn no_direction_is_preferred() {
        let mut random = stream(12, Purpose::Weights, 0);
        let (mut sum, mut above) = (0.0, 0);
        for _ in 0..10_000 {
            let weights = orthogonal::<f64>(3, 3, 1.0, &mut random);
            sum += weights[0] * weights[0];
            above += u32::from(weights[8] > 0.0);
        }
        // The square of one coordinate of a uniform direction in space is a third on average.
        assert!((sum / 1e4 - 1.0 / 3.0).abs() < 0.012, "{}", sum / 1e4);
        assert!(above.abs_diff(5_000) < 200, "{above}");
    }
}
