//! Chromium, which opens flame graphs and uses their search.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::place;
use crate::process;

/// What a flame graph shows after a search.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Found {
    /// The text that tells how much matched.
    pub matched: String,
    /// How many rectangles are marked.
    pub marked: u32,
    /// How many rectangles there are.
    pub rectangles: u32,
}

/// Opens the picture, clicks its search button, types `term` into the box that appears, and reads
/// what the picture shows then. The picture must be in a folder of its own.
///
/// # Errors
/// When the browser fails, or the picture does not work as a flame graph does.
pub fn search(picture: &Path, term: &str) -> Result<Found> {
    let page = picture.with_extension("html");
    let name = picture
        .file_name()
        .context("no picture")?
        .display()
        .to_string();
    fs::write(&page, html(&name, term)?)?;
    let text = dump(&format!("file://{}", page.display()))?;
    let found = text
        .split_once("<pre id=\"found\">")
        .and_then(|(_, rest)| rest.split_once("</pre>"))
        .with_context(|| format!("the page has no result: {text}"))?
        .0;
    serde_json::from_str(found).with_context(|| format!("the page says {found:?}"))
}

/// Opens the picture at the address a search leads to, as from a bookmark, and returns the text
/// that tells how much matched.
///
/// # Errors
/// When the browser fails, or the picture has no such text.
pub fn open_at_search(picture: &Path, term: &str) -> Result<String> {
    let text = dump(&format!("file://{}?s={term}", picture.display()))?;
    let element = text
        .split_once("<text id=\"matched\"")
        .and_then(|(_, rest)| rest.split_once("</text>"))
        .with_context(|| format!("no result in the picture: {text}"))?
        .0;
    Ok(element.rsplit('>').next().unwrap_or_default().to_owned())
}

/// A page that holds the picture in a frame and uses it. A headless browser has nobody who types
/// into its boxes, so the page answers for them.
fn html(picture: &str, term: &str) -> Result<String> {
    let term = serde_json::to_string(term)?;
    Ok(format!(
        r#"<!doctype html>
<iframe id="frame" src="{picture}" width="1200" height="600"></iframe>
<pre id="found"></pre>
<script>
frame.onload = () => {{
  const inside = frame.contentWindow, picture = inside.document;
  inside.prompt = () => {term};
  const button = picture.getElementById('search');
  button.dispatchEvent(new inside.MouseEvent('click', {{bubbles: true}}));
  const rectangles = [...picture.querySelectorAll('#frames g rect')];
  found.textContent = JSON.stringify({{
    matched: picture.getElementById('matched').textContent,
    marked: rectangles.filter(r => r.getAttribute('fill') === 'rgb(230,0,230)').length,
    rectangles: rectangles.length,
  }});
}};
</script>
"#
    ))
}

fn dump(address: &str) -> Result<String> {
    let profile = place::folder()?;
    process::output(
        Command::new("timeout")
            .args([
                "60",
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
            ])
            .args([
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
            ])
            .args(["--disable-component-update", "--disable-sync"])
            .args([
                "--allow-file-access-from-files",
                "--virtual-time-budget=5000",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(["--dump-dom", address]),
    )
}
