//! Figures of many values: how equal shares are, and quantiles.

/// Jain's index: 1 if all have the same, 1/n if one of n has all.
pub(crate) fn jain(shares: impl IntoIterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for share in shares {
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    // Where nobody has anything, all have the same.
    if squares == 0.0 { 1.0 } else { sum * sum / (count * squares) }
}

/// The value below which `share` of `values` are; NaN if there is none.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

/// The mean; NaN if there is no value.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
