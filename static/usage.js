// The bars of the page of usage: a stack for each day, drawn by uPlot. Without this the tables say the same.

const box = document.getElementById("usage-bars");
const said = document.getElementById("usage-day");
const HEIGHT = 220;
const ROUND = [...Array(13).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function short(number) {
  return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(number);
}

function describe(bars, place) {
  const parts = bars.series.filter((one) => one.values[place] > 0);
  const sum = parts.reduce((sofar, one) => sofar + one.values[place], 0);
  const each = parts.map((one) => `${one.name} ${short(one.values[place])}`).join(" · ");
  return `${bars.days[place]}: ${short(sum)} ${bars.unit}${parts.length > 1 ? ` (${each})` : parts.length ? `, ${parts[0].name}` : ""}`;
}

// Each series is drawn from the ground up to the top of its own part, the highest first: the lower ones cover the rest.
function stacked(bars) {
  const tops = [];
  let below = bars.days.map(() => 0);
  for (const one of bars.series) {
    below = below.map((height, place) => height + one.values[place]);
    tops.push(below);
  }
  return tops.reverse();
}

function draw(bars) {
  const soft = colour("--soft");
  const line = colour("--line");
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const last = bars.days.length - 1;
  const overall = `${bars.days[0]} to ${bars.days[last]}, ${bars.unit} a day`;
  const reversed = [...bars.series].reverse();
  const plot = new window.uPlot({
    width: box.clientWidth,
    height: HEIGHT,
    padding: [12, 8, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
    scales: {
      x: { time: false, range: [-0.5, last + 0.5] },
      y: { range: (_, __, highest) => [0, Math.max(highest, 1) * 1.05] },
    },
    axes: [
      {
        stroke: soft, font, grid: { show: false }, ticks: { show: false }, incrs: [1, 2, 5, 7, 14, 30], space: 52, size: 30,
        values: (_, splits) => splits.map((at) => (Number.isInteger(at) ? bars.days[at] ?? "" : "")),
      },
      {
        stroke: soft, font, grid: { stroke: line, width: 1 }, ticks: { show: false }, incrs: ROUND, space: 36, size: 52,
        values: (_, splits) => splits.map(short),
      },
    ],
    series: [
      {},
      ...reversed.map((one) => ({
        fill: colour(`--series-${one.colour}`),
        width: 0,
        points: { show: false },
        paths: window.uPlot.paths.bars({ size: [0.72, 56], radius: 0 }),
      })),
    ],
    hooks: {
      setCursor: [({ cursor }) => { said.textContent = cursor.idx == null ? overall : describe(bars, cursor.idx); }],
    },
  }, [bars.days.map((_, place) => place), ...stacked(bars)], box);
  said.textContent = overall;
  return plot;
}

if (box && window.uPlot) {
  const bars = JSON.parse(box.dataset.bars);
  box.closest("figure").hidden = false;
  let plot = draw(bars);
  new ResizeObserver(() => { if (box.clientWidth !== plot.width) plot.setSize({ width: box.clientWidth, height: HEIGHT }); }).observe(box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    plot.destroy();
    plot = draw(bars);
  });
}
