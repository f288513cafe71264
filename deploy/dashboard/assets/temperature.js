// Temperature and effective size on a histogram of distances: what a draft would do, computed while it is dragged.
// P_i = softmax(-d_i / tau), effective size = (1/N) sum(1 - (1 - P_i)^N) (Lin et al., CVPR 2025, Eq. 4 and 5). Every
// image counts at the middle of its bin; the server's exact value replaces this one when it arrives.

const SIGN = { hard: 1 };
const SHOWN = ["prototypical", "hard", "uniform", "uniform_replacement"];
const BISECTIONS = 60;

/** Weight of one image of each bin, scaled so that the largest is 1. */
function weights(shape, temperature) {
  const sign = SIGN[shape.policy] ?? -1;
  const exponents = shape.middles.map((distance) => (sign * distance) / temperature);
  // Relative to the largest exponent, or exp() leaves its range; an empty bin must not set it.
  const top = Math.max(...exponents.filter((_, bin) => shape.count[bin] > 0));
  return exponents.map((exponent) => Math.exp(Math.min(0, exponent - top)));
}

/** Share of the draws that falls into each bin; sums to 1. */
export function massAt(shape, temperature) {
  const mass = weights(shape, temperature).map((weight, bin) => weight * shape.count[bin]);
  const sum = mass.reduce((total, value) => total + value, 0);
  return mass.map((value) => value / sum);
}

/** Whether a policy draws by distances and a temperature alone. */
export function isShown(policy) {
  return SHOWN.includes(policy);
}

/** The effective size of a temperature, a share of the images. */
export function effectiveSizeAt(shape, temperature) {
  const mass = massAt(shape, temperature);
  let distinct = 0;
  for (let bin = 0; bin < mass.length; bin += 1) {
    const images = shape.count[bin];
    if (images > 0) distinct += images * -Math.expm1(shape.total * Math.log1p(-Math.min(mass[bin] / images, 1 - 1e-12)));
  }
  return distinct / shape.total;
}

/** The temperature of an effective size, by bisection; the nearest one where none reaches it. */
export function temperatureFor(shape, size) {
  let [cold, hot] = [1e-4, 1e4];
  for (let turn = 0; turn < BISECTIONS; turn += 1) {
    // The geometric mean: temperatures span eight decades.
    const middle = Math.sqrt(cold * hot);
    if (effectiveSizeAt(shape, middle) < size) cold = middle;
    else hot = middle;
  }
  return Math.sqrt(cold * hot);
}

/** The API's distribution in the form that these functions take; null without distances. */
export function shapeOf(distribution) {
  const { edges, count, policy } = distribution;
  if (!count.length) return null;
  const middles = count.map((_, bin) => (edges[bin] + edges[bin + 1]) / 2);
  return { policy, count, middles, edges, total: count.reduce((sum, value) => sum + value, 0) };
}
