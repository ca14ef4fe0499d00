//! The numbers: values of several runs, what they are to reach, and how both are shown.

use serde_json::{Value, json};

/// What a value counts.
#[derive(Clone, Copy)]
pub enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Millions of bytes.
    Megabytes,
    /// Hundredths.
    Percent,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "µs",
            Self::Seconds => "s",
            Self::Bytes => "B",
            Self::Megabytes => "MB",
            Self::Percent => "%",
        }
    }
}

/// The same quantity, measured several times.
pub struct Values {
    sorted: Vec<f64>,
    unit: Unit,
}

impl Values {
    /// Takes what was measured, in any order.
    pub fn new(unit: Unit, values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted, unit }
    }

    /// The middle value; not a number when there is none.
    pub fn median(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        match self.sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => self.sorted[middle],
            _ => f64::midpoint(self.sorted[middle - 1], self.sorted[middle]),
        }
    }

    /// The lowest and highest of few values; of many, those that a tenth lies beyond.
    fn spread(&self) -> (f64, f64) {
        let last = self.sorted.len().saturating_sub(1);
        let beyond = if last < 9 { 0 } else { last / 10 };
        match self.sorted.get(beyond..=last - beyond) {
            Some([low, .., high]) => (*low, *high),
            _ => (self.median(), self.median()),
        }
    }

    /// The lowest alone.
    pub fn lowest(&self) -> Self {
        Self::new(self.unit, self.sorted.first().copied())
    }

    fn to_json(&self) -> Value {
        let (low, high) = self.spread();
        json!({
            "median": self.median(),
            "low": low,
            "high": high,
            "values": self.sorted,
        })
    }

    fn to_text(&self) -> String {
        let (unit, runs) = (self.unit.name(), self.sorted.len());
        let (low, high) = self.spread();
        let [median, low, high] = [self.median(), low, high].map(digits);
        match runs {
            0 => "failed".to_owned(),
            1 => format!("{median} {unit} (n = 1)"),
            _ => format!("{median} {unit} ({low}–{high}, n = {runs})"),
        }
    }
}

/// Three digits or so, whatever the size.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        100.0 | 1000.0.. => 0,
        99.0..100.0 => 2, // Shares are often just below the whole.
        10.0.. => 1,
        0.1.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// A bound on the median.
#[derive(Clone, Copy)]
pub enum Bound {
    /// It is this or less.
    AtMost(f64),
    /// It is this or more.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    fn sign_and_limit(self) -> (char, f64) {
        match self {
            Self::AtMost(limit) => ('≤', limit),
            Self::AtLeast(limit) => ('≥', limit),
        }
    }
}

/// What is to be reached.
pub struct Goal {
    /// The bound.
    pub bound: Bound,
    /// Whose number the bound is, when it was measured beside ours.
    pub rival: Option<&'static str>,
}

/// One line of the table.
pub struct Row {
    /// What is measured.
    pub what: String,
    /// The numbers.
    pub values: Values,
    /// Those of `perf record --call-graph dwarf`; `None` where there is nothing to compare.
    pub perf: Option<Values>,
    /// Those of lightswitch.
    pub lightswitch: Option<Values>,
    /// What they are to reach; `None` for a number that only explains others.
    pub goal: Option<Goal>,
    /// Why the numbers do not count yet.
    pub unfit: Option<&'static str>,
}

impl Row {
    /// A number that explains others.
    pub fn fact(what: impl Into<String>, values: Values) -> Self {
        Self {
            what: what.into(),
            values,
            perf: None,
            lightswitch: None,
            goal: None,
            unfit: None,
        }
    }

    /// A number that is promised.
    pub fn promise(what: impl Into<String>, values: Values, bound: Bound) -> Self {
        let mut row = Self::fact(what, values);
        row.goal = Some(Goal { bound, rival: None });
        row
    }

    /// A number that is promised to be no more than another program's, measured in turns with it.
    pub fn no_more_than(
        what: impl Into<String>,
        values: Values,
        rival: &'static str,
        rival_values: &Values,
    ) -> Self {
        let mut row = Self::promise(what, values, Bound::AtMost(rival_values.median()));
        if let Some(goal) = &mut row.goal {
            goal.rival = Some(rival);
        }
        if rival_values.sorted.len() < row.values.sorted.len() {
            row.unfit = Some("the other program failed");
        }
        row
    }

    /// The same with perf's number beside it; empty values stand for one that failed.
    pub fn beside_perf(mut self, perf: Values) -> Self {
        self.perf = Some(perf);
        self
    }

    /// The same with lightswitch's number beside it; empty values stand for one that failed.
    pub fn beside_lightswitch(mut self, lightswitch: Values) -> Self {
        self.lightswitch = Some(lightswitch);
        self
    }

    fn verdict(&self, enough_runs: bool) -> Verdict {
        let Some(goal) = &self.goal else {
            return Verdict::NothingToReach;
        };
        match self.unfit {
            Some(reason) => Verdict::NotJudged(reason),
            None if !enough_runs => Verdict::NotJudged("too few runs"),
            None if goal.bound.holds(self.values.median()) => Verdict::Kept,
            None => Verdict::Broken,
        }
    }

    fn to_reach(&self) -> String {
        let Some(goal) = &self.goal else {
            return "–".to_owned();
        };
        let (sign, limit) = goal.bound.sign_and_limit();
        let unit = self.values.unit.name();
        match goal.rival {
            Some(rival) if limit.is_nan() => format!("{sign} {rival}"),
            Some(rival) => format!("{sign} {} {unit} ({rival})", digits(limit)),
            None => format!("{sign} {limit} {unit}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Kept,
    Broken,
    NotJudged(&'static str),
    NothingToReach,
}

impl Verdict {
    fn to_text(self) -> String {
        match self {
            Self::Kept => "kept".to_owned(),
            Self::Broken => "**broken**".to_owned(),
            Self::NotJudged(reason) => format!("not judged: {reason}"),
            Self::NothingToReach => "–".to_owned(),
        }
    }
}

/// All lines of a run.
pub struct Report {
    /// The lines.
    pub rows: Vec<Row>,
    /// Whether every number comes from enough runs to be judged.
    pub enough_runs: bool,
    /// What was measured on what.
    pub setting: Vec<(&'static str, String)>,
}

impl Report {
    /// The promises that are broken.
    pub fn broken(&self) -> Vec<&str> {
        self.rows
            .iter()
            .filter(|row| row.verdict(self.enough_runs) == Verdict::Broken)
            .map(|row| row.what.as_str())
            .collect()
    }

    /// The table, in Markdown.
    pub fn to_markdown(&self) -> String {
        let peer = |values: &Option<Values>| match values {
            Some(values) => values.to_text(),
            None => "–".to_owned(),
        };
        let mut text = String::from(
            "| promise | hotspan | perf dwarf | lightswitch | to reach | verdict |\n\
             |---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            text += &format!(
                "| {} | {} | {} | {} | {} | {} |\n",
                row.what,
                row.values.to_text(),
                peer(&row.perf),
                peer(&row.lightswitch),
                row.to_reach(),
                row.verdict(self.enough_runs).to_text()
            );
        }
        text += "\nMedian (lowest–highest run; of ten or more, the 10th–90th percentile).";
        for (name, value) in &self.setting {
            text += &format!(" {name}: {value}.");
        }
        text.push('\n');
        text
    }

    /// All numbers, for programs.
    pub fn to_json(&self) -> Value {
        let rows: Vec<_> = self.rows.iter().map(|row| self.row_to_json(row)).collect();
        let setting: serde_json::Map<_, _> = self
            .setting
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        json!({ "setting": setting, "rows": rows })
    }

    fn row_to_json(&self, row: &Row) -> Value {
        let goal = row.goal.as_ref().map(|goal| {
            let (bound, limit) = match goal.bound {
                Bound::AtMost(limit) => ("at_most", limit),
                Bound::AtLeast(limit) => ("at_least", limit),
            };
            json!({ bound: limit, "rival": goal.rival })
        });
        json!({
            "what": row.what,
            "unit": row.values.unit.name(),
            "hotspan": row.values.to_json(),
            "perf_dwarf": row.perf.as_ref().map(Values::to_json),
            "lightswitch": row.lightswitch.as_ref().map(Values::to_json),
            "goal": goal,
            "verdict": row.verdict(self.enough_runs).to_text().replace('*', ""),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds<const N: usize>(values: [f64; N]) -> Values {
        Values::new(Unit::Seconds, values)
    }

    #[test]
    fn one_lucky_run_among_three_keeps_no_promise() {
        let row = Row::promise("x", seconds([9.0, 1.0, 8.0]), Bound::AtMost(2.0));
        assert_eq!(row.verdict(true), Verdict::Broken);
        assert_eq!(row.verdict(false), Verdict::NotJudged("too few runs"));
    }

    #[test]
    fn missing_numbers_keep_no_promise() {
        for bound in [Bound::AtMost(2.0), Bound::AtLeast(2.0)] {
            let row = Row::promise("x", seconds([]), bound);
            assert_eq!(row.verdict(true), Verdict::Broken);
        }
    }

    #[test]
    fn absent_rival_is_not_beaten() {
        let row = Row::no_more_than("x", seconds([1.0]), "perf", &seconds([]));
        assert!(matches!(row.verdict(true), Verdict::NotJudged(_)));
    }

    #[test]
    fn number_that_explains_others_breaks_nothing() {
        let rows = vec![
            Row::fact("why", seconds([3.0])),
            Row::promise("now", seconds([3.0]), Bound::AtMost(2.0)),
        ];
        let report = Report {
            rows,
            enough_runs: true,
            setting: Vec::new(),
        };
        assert_eq!(report.broken(), ["now"]);
    }

    #[test]
    fn spread_of_many_values_leaves_the_outermost_tenths_out() {
        let few = seconds([3.0, 1.0, 2.0]);
        assert_eq!((few.median(), few.spread()), (2.0, (1.0, 3.0)));
        let many = Values::new(Unit::Seconds, (0..=20).map(f64::from));
        assert_eq!((many.median(), many.spread()), (10.0, (2.0, 18.0)));
        let none = seconds([]);
        assert!(none.median().is_nan() && none.spread().0.is_nan());
    }

    #[test]
    fn table_shows_the_rival_beside_its_number() {
        let row = Row::no_more_than("CPU", seconds([0.05]), "perf", &seconds([0.2]));
        assert_eq!(row.to_reach(), "≤ 0.20 s (perf)");
        assert_eq!(row.values.to_text(), "0.050 s (n = 1)");
    }

    #[test]
    fn others_that_failed_or_have_no_such_thing_are_told_apart() {
        let row = Row::promise("CPU", seconds([1.0]), Bound::AtMost(2.0)).beside_perf(seconds([]));
        let report = Report {
            rows: vec![row],
            enough_runs: true,
            setting: Vec::new(),
        };
        let table = report.to_markdown();
        let line = table.lines().nth(2).unwrap();
        assert_eq!(line, "| CPU | 1.00 s (n = 1) | failed | – | ≤ 2 s | kept |");
    }

    #[test]
    fn digits_follow_the_size() {
        for (value, text) in [
            (1792.4, "1792"),
            (102.34, "102.3"),
            (100.0, "100"),
            (99.87, "99.87"),
            (12.34, "12.3"),
            (0.0917, "0.092"),
        ] {
            assert_eq!(digits(value), text);
        }
    }
}
