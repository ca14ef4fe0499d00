// Package prometheus pins what `cargo xtask prometheus` builds for the live tests: the server that
// scrapes and answers PromQL, and the checker of scrape pages.
package prometheus

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
