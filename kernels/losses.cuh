// Losses of a linear score, chosen by a number: the twin of losses.py, where their formulas and sources are.
//
// The number is an argument, not a template's: the branch costs a few instructions a row and is the same for all
// threads, while six times as many kernels would have to be built.
#pragma once
#include "common.cuh"

namespace dml {

constexpr int SQUARED = 0, HUBER = 1, LOGISTIC = 2, HINGE = 3, SQUARED_HINGE = 4, POISSON = 5;

template <class P>
struct SlopeAndLoss {
    P slope, loss;
};

// dℓ/ds and ℓ of one row, times what the row counts. Where a loss has a kink, the slope is that of its flat side. NaN
// gives NaN, but for the slope of HINGE, whose loss is NaN then.
template <class P>
__device__ __forceinline__ SlopeAndLoss<P> slope_and_loss(int loss, P delta, P score, P y, P counts) {
    SlopeAndLoss<P> found;
    if (loss == LOGISTIC) {
        P e = exp(-fabs(score));  // never overflows
        P inverse = P(1) / (P(1) + e);
        found.slope = (score >= P(0) ? inverse : e * inverse) - y;
        found.loss = (score > P(0) ? score : P(0)) - y * score + log1p(e);
    } else if (loss == HINGE || loss == SQUARED_HINGE) {
        P sign = P(2) * y - P(1), missing = P(1) - sign * score;
        if (missing <= P(0)) {
            found.slope = found.loss = P(0);
        } else if (loss == HINGE) {
            found.slope = -sign;
            found.loss = missing;
        } else {
            found.slope = P(-2) * sign * missing;
            found.loss = missing * missing;
        }
    } else if (loss == POISSON) {
        P mean = exp(score);
        found.slope = mean - y;
        found.loss = mean - y * score;
    } else {
        P residual = score - y;
        if (loss == HUBER && fabs(residual) > delta) {
            found.slope = residual > P(0) ? delta : -delta;
            found.loss = delta * (fabs(residual) - delta / P(2));
        } else {
            found.slope = residual;
            found.loss = residual * residual / P(2);
        }
    }
    found.slope *= counts;
    found.loss *= counts;
    return found;
}

// S(v, threshold) = sign(v)·max(|v| − threshold, 0). NaN stays, so that a diverging run shows.
template <class P>
__device__ __forceinline__ P shrunk(P v, P threshold) {
    return (v - threshold < P(0) ? P(0) : v - threshold) + (v + threshold > P(0) ? P(0) : v + threshold);
}

}  // namespace dml
