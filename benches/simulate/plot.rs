//! The plot: cache hits and spread of load for each load factor and each size of the fleet.

use std::fmt::Write as _;

use crate::{Column, FACTORS, Fleet, run::Outcome};

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 420.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 330.0;
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#009e73"];

/// One of the two diagrams.
struct Panel {
    title: &'static str,
    left: f64,
    right: f64,
    /// The labelled values of the vertical axis.
    ticks: &'static [f64],
    /// On a logarithmic axis.
    log: bool,
    value: fn(&Outcome) -> f64,
}

const PANELS: [Panel; 2] = [
    Panel {
        title: "Builds that find a warm cache, %",
        left: 60.0,
        right: 420.0,
        ticks: &[0.0, 20.0, 40.0, 60.0, 80.0, 100.0],
        log: false,
        value: |outcome| 100.0 * outcome.steady.hits(),
    },
    Panel {
        title: "Load of the busiest daemon ÷ mean",
        left: 500.0,
        right: 860.0,
        ticks: &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0],
        log: true,
        value: |outcome| outcome.steady.spread(),
    },
];

/// The whole picture.
pub(crate) fn svg(columns: &[Column], fleets: &[Fleet]) -> String {
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#333\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for panel in &PANELS {
        panel.draw(&mut text, columns, fleets);
    }
    legend(&mut text, fleets);
    text.push_str("</svg>\n");
    text
}

impl Panel {
    fn x(&self, slot: usize, slots: usize) -> f64 {
        let step = (self.right - self.left) / slots as f64;
        self.left + step * (slot as f64 + 0.5)
    }

    fn y(&self, value: f64) -> f64 {
        let (first, last) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        let scale = |value: f64| if self.log { value.max(first).ln() } else { value };
        let part = (scale(value) - scale(first)) / (scale(last) - scale(first));
        BOTTOM - part * (BOTTOM - TOP)
    }

    fn draw(&self, text: &mut String, columns: &[Column], fleets: &[Fleet]) {
        let Self { title, left, right, .. } = self;
        let _ = writeln!(
            text,
            "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>",
            TOP - 24.0
        );
        for tick in self.ticks {
            let y = self.y(*tick);
            let _ = writeln!(
                text,
                "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
                left - 8.0,
                y + 4.0
            );
        }
        for (slot, column) in columns.iter().enumerate() {
            let x = self.x(slot, columns.len());
            let label = match column.title.as_str() {
                "off" => "none",
                "least-builds" => "least",
                other => other,
            };
            let _ = writeln!(
                text,
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                BOTTOM + 20.0
            );
        }
        let others = columns.len() - FACTORS.len();
        let middle = f64::midpoint(self.x(others, columns.len()), *right);
        let _ = writeln!(
            text,
            "<text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">consistent-hash, by load \
             factor</text>",
            BOTTOM + 40.0
        );
        for (fleet, colour) in fleets.iter().zip(COLOURS) {
            self.points(text, fleet, colour, others);
        }
    }

    fn points(&self, text: &mut String, fleet: &Fleet, colour: &str, others: usize) {
        let slots = fleet.outcomes.len();
        let points: Vec<(f64, f64)> = fleet
            .outcomes
            .iter()
            .enumerate()
            .map(|(slot, outcome)| (self.x(slot, slots), self.y((self.value)(outcome))))
            .collect();
        let line: Vec<String> =
            points[others..].iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for (x, y) in points {
            let _ =
                writeln!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>");
        }
    }
}

fn legend(text: &mut String, fleets: &[Fleet]) {
    for (number, (fleet, colour)) in fleets.iter().zip(COLOURS).enumerate() {
        let x = 300.0 + 120.0 * number as f64;
        let y = HEIGHT - 20.0;
        let _ = writeln!(
            text,
            "<circle cx=\"{x}\" cy=\"{}\" r=\"5\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"{y}\">{} daemons</text>",
            y - 4.0,
            x + 12.0,
            fleet.daemons
        );
    }
}
