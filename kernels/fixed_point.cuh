// What a row of a linear score adds in fixed point, and when it must not: `fixed_point_gradient` and `fits` of glm.py.
#pragma once
#include "losses.cuh"

namespace dml {

constexpr double UNITS = 4294967296.0;  // a mass is in units so many times as large
constexpr long long TOO_MUCH = 1LL << 30;

// What a row adds to the sums that are no feature's, in fixed point: whether its terms can be added at all, the factor
// of its features' terms, the intercept's term, the loss, and the two masses.
template <class P>
struct FixedRow {
    P step;
    long long bias, loss, mass, loss_mass;
    bool fits;

    __device__ __forceinline__ FixedRow(SlopeAndLoss<P> found, P squares, P bias_scale, double per_unit,
                                        double per_loss_unit) {
        double slope = fabs(double(found.slope));
        double by_norm = slope * sqrt(double(squares)), amount = by_norm < slope ? slope : by_norm;  // NaN stays
        amount *= per_unit / UNITS;
        double loss_amount = fabs(double(found.loss)) * (per_loss_unit / UNITS);
        bool is_much = !(amount < double(TOO_MUCH)), is_much_loss = !(loss_amount < double(TOO_MUCH));
        fits = !is_much && !is_much_loss;
        mass = is_much ? TOO_MUCH : fits ? 1 + (long long)amount : 1;
        loss_mass = is_much_loss ? TOO_MUCH : fits ? 1 + (long long)loss_amount : 1;
        step = fits ? P(double(found.slope) * per_unit) : P(0);
        bias = fits ? (long long)(bias_scale * step) : 0;
        loss = fits ? (long long)(double(found.loss) * per_loss_unit) : 0;
    }
};

}  // namespace dml
