//! Flame graphs: an interactive SVG drawn by inferno, with zoom and search.
//!
//! The colour says what a frame is; shades of it tell neighbours apart and are a function of the
//! name alone, so that equal input makes equal files and a function looks the same in two
//! pictures. The line under the title names the colours that occur:
//!
//! | colour | frame |
//! |---|---|
//! | orange | kernel |
//! | red | native code (C, C++, unknown) |
//! | yellow | Rust |
//! | blue | Go |
//! | violet | inlined |
//! | green | JIT |
//! | grey | marks such as `[truncated]` |
//! | slate | process and thread names |
//!
//! In a difference the colour says how a frame's own time changed: red for more, blue for less.

use std::collections::BTreeMap;
use std::io::{self, Write};

use inferno::flamegraph::color::{BackgroundColor, Color, PaletteMap, StrokeColor};
use inferno::flamegraph::{self, Direction, TextTruncateDirection};

use super::Options;
use super::folded::{ElementKind, Folded, fold, safe_text};
use crate::model::Profile;

const WHITE: Color = Color::new(255, 255, 255);
/// inferno's colours for the greatest change in a difference.
const MORE: Color = Color::new(255, 100, 100);
const LESS: Color = Color::new(100, 100, 255);

/// What a picture says and how it is laid out.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// The headline.
    pub title: String,
    /// The line below it; the legend of colours follows it.
    pub subtitle: String,
    /// What a weight counts, such as `samples`.
    pub unit: String,
    /// What weights are multiplied with when they are shown.
    pub factor: f64,
    /// Root at the top.
    pub is_icicle: bool,
    /// Merge stacks from the leaf: who calls the hot functions.
    pub is_reversed: bool,
}

/// Writes the profile as a flame graph.
pub fn write(profile: &Profile, options: &Options, w: &mut dyn Write) -> io::Result<()> {
    let folded = fold(profile, options);
    let title = match options.title.as_str() {
        "" => "hotspan",
        title => title,
    };
    let picture = Picture {
        title: title.to_owned(),
        subtitle: facts(profile),
        unit: "samples".to_owned(),
        factor: 1.0,
        ..Picture::default()
    };
    draw(&folded, &picture, w)
}

/// `10.0 s at 99 Hz · 1,234 samples · 5 lost or cut short`.
fn facts(profile: &Profile) -> String {
    let seconds = profile.duration_ns as f64 / 1e9;
    let samples: u64 = profile
        .samples
        .iter()
        .map(crate::model::Sample::count)
        .sum();
    let lost: u64 = profile.quality.lost.values().sum();
    let mut facts = format!(
        "{seconds:.1} s at {} Hz · {} samples",
        profile.rate_hz,
        thousands(samples)
    );
    if lost > 0 {
        facts.push_str(&format!(" · {} lost or cut short", thousands(lost)));
    }
    facts
}

/// A number with a comma between each three digits.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Draws folded stacks.
///
/// # Errors
/// `InvalidData` when there is nothing to draw, and what `w` returns.
pub fn draw(folded: &Folded, picture: &Picture, w: &mut dyn Write) -> io::Result<()> {
    let stacks = folded.stacks.iter();
    let lines = lines(
        stacks.map(|(stack, weight)| (&**stack, weight.to_string())),
        picture,
    );
    let mut kinds: Vec<ElementKind> = folded.kinds.values().copied().collect();
    kinds.sort_unstable();
    kinds.dedup();
    let legend: Vec<_> = kinds
        .into_iter()
        .filter_map(|kind| Some((Shade::of(kind).middle(), label(kind)?)))
        .collect();
    let mut palette = palette(folded);
    let mut options = options(picture, &legend);
    options.palette_map = Some(&mut palette);
    render(options, &lines, &legend, w)
}

/// Draws what changed between two profiles. Widths are those of `after`; a stack that only
/// `before` has is not in the picture.
///
/// # Errors
/// As for [`draw`].
pub fn draw_difference(
    before: &Folded,
    after: &Folded,
    picture: &Picture,
    w: &mut dyn Write,
) -> io::Result<()> {
    let mut both: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (stack, weight) in &before.stacks {
        both.entry(stack).or_default().0 = *weight;
    }
    for (stack, weight) in &after.stacks {
        both.entry(stack).or_default().1 = *weight;
    }
    let changes = both
        .into_iter()
        .map(|(stack, (before, after))| (stack, format!("{before} {after}")));
    let lines = lines(changes, picture);
    let legend = [(MORE, "more than before"), (LESS, "less")];
    let mut options = options(picture, &legend);
    // Most frames did not change and are white: the outline makes them boxes.
    options.stroke_color = StrokeColor::Color(Color::new(210, 210, 210));
    render(options, &lines, &legend, w)
}

/// The lines inferno reads, in the order frames are drawn in, from left to right.
///
/// Stacks are compared element by element. Comparing them as text would put `a;f(int)` between
/// `a;f` and `a;f;g`, and `f` would be drawn as two boxes.
fn lines<'a>(stacks: impl Iterator<Item = (&'a str, String)>, picture: &Picture) -> Vec<String> {
    let mut lines: Vec<(Vec<&str>, String)> = stacks
        .map(|(stack, counts)| {
            let mut elements: Vec<&str> = stack.split(';').collect();
            if picture.is_reversed {
                elements.reverse();
            }
            (elements, counts)
        })
        .collect();
    lines.sort();
    lines
        .into_iter()
        .map(|(elements, counts)| format!("{} {counts}", elements.join(";")))
        .collect()
}

fn options<'a>(picture: &Picture, legend: &[(Color, &str)]) -> flamegraph::Options<'a> {
    let mut options = flamegraph::Options::default();
    options.title = safe_text(&picture.title);
    options.subtitle = Some(format!("{}{}", safe_text(&picture.subtitle), plain(legend)));
    // The script cuts the count off a name at the last opening parenthesis.
    options.count_name = safe_text(&picture.unit).replace('(', "[");
    options.factor = picture.factor;
    options.bgcolors = Some(BackgroundColor::Flat(WHITE));
    options.direction = match picture.is_icicle {
        true => Direction::Inverted,
        false => Direction::Straight,
    };
    // inferno cuts the front off, where C++ names have the function and not its parameters.
    options.text_truncate_direction = TextTruncateDirection::Right;
    options
}

fn render(
    mut options: flamegraph::Options<'_>,
    lines: &[String],
    legend: &[(Color, &str)],
    w: &mut dyn Write,
) -> io::Result<()> {
    // inferno sorts lines as text. A flame chart is what it does not sort; it draws one from its
    // last line to its first.
    options.flame_chart = true;
    let mut svg = Vec::new();
    flamegraph::from_lines(
        &mut options,
        lines.iter().rev().map(String::as_str),
        &mut svg,
    )?;
    let svg = paint_legend(svg, legend);
    // inferno shows the search button at a tenth of its strength; few would find it.
    let svg = svg.replacen("opacity:0.1", "opacity:0.6", 1);
    w.write_all(svg.as_bytes())
}

/// Gives the squares of the legend their colours: inferno writes text in one colour only.
fn paint_legend(svg: Vec<u8>, legend: &[(Color, &str)]) -> String {
    let svg = String::from_utf8_lossy(&svg).into_owned();
    let plain = plain(legend);
    let painted: String = legend
        .iter()
        .map(|(color, label)| {
            let Color { r, g, b } = color;
            format!(r#"{GAP}<tspan fill="rgb({r},{g},{b})">{SQUARE}</tspan> {label}"#)
        })
        .collect();
    match svg.find("id=\"subtitle\"").and_then(|subtitle| {
        let at = subtitle + svg[subtitle..].find(&plain)?;
        Some((&svg[..at], &svg[at + plain.len()..]))
    }) {
        Some((head, tail)) => format!("{head}{painted}{tail}"),
        None => svg,
    }
}

const SQUARE: char = '■';
/// An em space: SVG draws any number of blanks as one.
const GAP: char = '\u{2003}';

fn plain(legend: &[(Color, &str)]) -> String {
    legend
        .iter()
        .map(|(_, label)| format!("{GAP}{SQUARE} {label}"))
        .collect()
}

/// The name of a kind in the legend; processes explain themselves.
fn label(kind: ElementKind) -> Option<&'static str> {
    match kind {
        ElementKind::Process => None,
        ElementKind::Kernel => Some("kernel"),
        ElementKind::Native => Some("native"),
        ElementKind::Rust => Some("Rust"),
        ElementKind::Go => Some("Go"),
        ElementKind::Inlined => Some("inlined"),
        ElementKind::Jit => Some("JIT"),
        ElementKind::Note => Some("note"),
    }
}

/// A colour for every element. inferno looks elements up with their marks, and shows them
/// without.
fn palette(folded: &Folded) -> PaletteMap {
    let mut palette = PaletteMap::default();
    palette.insert("", Color::new(230, 230, 230));
    for element in folded.stacks.keys().flat_map(|stack| stack.split(';')) {
        let kind = folded.kinds.get(element).copied().unwrap_or_else(|| {
            let (name, kind) = ElementKind::split_mark(element);
            kind.unwrap_or_else(|| ElementKind::guess(name))
        });
        if palette.get(element).is_none() {
            palette.insert(element, Shade::of(kind).for_name(element));
        }
    }
    palette
}

/// A range of colours: hue in degrees, saturation and lightness in percent, and how far the
/// latter may go from there. All are light enough for black text.
struct Shade {
    hue: f64,
    saturation: f64,
    lightness: f64,
    hue_spread: f64,
    lightness_spread: f64,
}

impl Shade {
    fn of(kind: ElementKind) -> Self {
        let (hue, saturation, lightness) = match kind {
            ElementKind::Kernel => (28.0, 92.0, 66.0),
            ElementKind::Native => (4.0, 78.0, 74.0),
            ElementKind::Rust => (48.0, 88.0, 67.0),
            ElementKind::Go => (197.0, 72.0, 70.0),
            ElementKind::Inlined => (272.0, 58.0, 80.0),
            ElementKind::Jit => (118.0, 48.0, 68.0),
            ElementKind::Note => (0.0, 0.0, 72.0),
            ElementKind::Process => (218.0, 32.0, 84.0),
        };
        Self {
            hue,
            saturation,
            lightness,
            hue_spread: 5.0,
            lightness_spread: 5.0,
        }
    }

    fn middle(&self) -> Color {
        rgb(self.hue, self.saturation, self.lightness)
    }

    fn for_name(&self, name: &str) -> Color {
        let hash = fnv(name);
        // Two numbers from -1 to 1 out of the hash.
        let part = |shift: u32| f64::from((hash >> shift) as u16) / 32_767.5 - 1.0;
        rgb(
            self.hue + part(16) * self.hue_spread,
            self.saturation,
            self.lightness + part(40) * self.lightness_spread,
        )
    }
}

/// The Fowler–Noll–Vo hash (FNV-1a, 64 bit): the same on every machine and in every version.
fn fnv(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// HSL to RGB (CSS Color 4, section 7.1).
fn rgb(hue: f64, saturation: f64, lightness: f64) -> Color {
    let (s, l) = (saturation / 100.0, lightness / 100.0);
    let channel = |n: f64| {
        let k = (n + hue.rem_euclid(360.0) / 30.0) % 12.0;
        let value = l - s * l.min(1.0 - l) * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0);
        (value * 255.0).round() as u8
    };
    Color::new(channel(0.0), channel(8.0), channel(4.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixture;

    fn picture() -> Picture {
        Picture {
            title: "t".to_owned(),
            unit: "samples".to_owned(),
            factor: 1.0,
            ..Picture::default()
        }
    }

    fn folded(lines: &[(&str, u64)]) -> Folded {
        let mut folded = Folded::default();
        for (stack, weight) in lines {
            folded.add((*stack).to_owned(), *weight);
        }
        folded
    }

    fn drawn(folded: &Folded, picture: &Picture) -> String {
        let mut svg = Vec::new();
        draw(folded, picture, &mut svg).unwrap();
        String::from_utf8(svg).unwrap()
    }

    /// The titles of the boxes of a function.
    fn boxes<'a>(svg: &'a str, function: &str) -> Vec<&'a str> {
        svg.split("<title>")
            .skip(1)
            .filter_map(|rest| rest.split("</title>").next())
            .filter(|title| {
                title
                    .rsplit_once(" (")
                    .is_some_and(|(name, _)| name == function)
            })
            .collect()
    }

    #[test]
    fn the_picture_is_deterministic_and_says_what_it_shows() {
        let svg = || {
            let mut svg = Vec::new();
            write(&fixture::mixed(), &Options::default(), &mut svg).unwrap();
            String::from_utf8(svg).unwrap()
        };
        let first = svg();
        assert_eq!(first, svg());
        assert!(first.contains("1.0 s at 100 Hz · 21 samples"), "{first}");
        assert!(first.contains("■</tspan> kernel"), "{first}");
        assert_eq!(boxes(&first, "vfs_read"), ["vfs_read (3 samples, 14.29%)"]);
        assert!(!first.contains("_[k]"), "{first}");
    }

    #[test]
    fn each_kind_has_a_colour_of_its_own() {
        use ElementKind::{Go, Inlined, Jit, Kernel, Native, Note, Process, Rust};
        let kinds = [Process, Kernel, Native, Rust, Go, Inlined, Jit, Note];
        let near = |a: Color, b: Color| {
            let far = |a: u8, b: u8| i32::from(a).abs_diff(i32::from(b));
            far(a.r, b.r) + far(a.g, b.g) + far(a.b, b.b) < 30
        };
        for (at, a) in kinds.iter().enumerate() {
            for b in &kinds[at + 1..] {
                let (a, b) = (Shade::of(*a).middle(), Shade::of(*b).middle());
                assert!(!near(a, b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_function_is_one_box_whatever_its_neighbours_are_called() {
        let svg = drawn(
            &folded(&[
                ("a;f", 1),
                ("a;f(int)", 1),
                ("a;f.part.0;x", 1),
                ("a;f;g", 2),
            ]),
            &picture(),
        );
        assert_eq!(boxes(&svg, "f"), ["f (3 samples, 60.00%)"]);
    }

    #[test]
    fn a_reversed_picture_merges_from_the_leaf() {
        let picture = Picture {
            is_reversed: true,
            ..picture()
        };
        let svg = drawn(&folded(&[("a;b;leaf", 1), ("a;c;leaf", 2)]), &picture);
        assert_eq!(boxes(&svg, "leaf"), ["leaf (3 samples, 100.00%)"]);
    }

    #[test]
    fn hostile_names_are_text_and_nothing_else() {
        let mut folded = Folded::default();
        let names = ["</title><script>alert(1)</script>", "a\u{0}b\"'&amp;"];
        let stack = folded.frame(ElementKind::Native, names.into_iter());
        folded.add(stack, 1);
        let hostile = Picture {
            title: "]]></svg><script>\u{1}".to_owned(),
            subtitle: "<b>".to_owned(),
            unit: "(x".to_owned(),
            ..picture()
        };
        let svg = drawn(&folded, &hostile);
        assert_eq!(svg.matches("<script").count(), 1, "{svg}");
        assert!(!svg.contains('\u{0}') && !svg.contains('\u{1}'));
        assert!(svg.contains("&lt;script&gt;alert"), "{svg}");
    }

    #[test]
    fn a_difference_shows_more_and_less() {
        let before = folded(&[("a;x", 10), ("a;y", 10), ("a;gone", 5)]);
        let after = folded(&[("a;x", 20), ("a;y", 1)]);
        let mut svg = Vec::new();
        draw_difference(&before, &after, &picture(), &mut svg).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        assert_eq!(boxes(&svg, "x"), ["x (20 samples, 95.24%; +47.62%)"]);
        assert_eq!(boxes(&svg, "y"), ["y (1 samples, 4.76%; -42.86%)"]);
        assert!(svg.contains("■</tspan> more than before"), "{svg}");
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        assert!(draw(&Folded::default(), &picture(), &mut Vec::new()).is_err());
    }

    #[test]
    fn numbers_have_commas() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }
}
