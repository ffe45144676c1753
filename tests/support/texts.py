"""Texts that a stranger would write: markup, addresses, escape sequences and forgeries of every target."""

HOSTILE = [
    "![](/graphql?query=mutation{wipeAssets})", "![x](https://evil.example/p.png)", "[sign in](https://evil.example)",
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<!-- gone", "&lt;b&gt;", "&#x3c;b&#x3e;",
    "https://evil.example/?a=b", "http://evil.example", "www.evil.example", "WWW.evil.example", "me@evil.example",
    "<https://evil.example>", "a | b | c", "|---|", "`code`", "```", "**bold**", "_em_", "__strong__", "~~gone~~",
    "\\", "\\|", "a\\", "[1]: https://evil.example", "[^1]", "# heading", "- item", "1. item", "> quote", "---", "$x$",
    "\x1b[2J\x1b[31mred", "\x1b]8;;https://evil.example\x07link\x1b]8;;\x07", "a\x00b", "\r\nERROR forged",
    "a\x08\x08b", "\u202egpj.exe", "\u2028split", "[/x]", "[red]x[/red]",
    "[link=https://evil.example]x[/link]", ":smile:", "%s %d",
    "{0}", "'; DROP TABLE x; --", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1+1", '"} 1\nforged 1',
    "<!channel>", "<@U123>", "@everyone", "</script><img src=x onerror=alert(1)>", "x" * 300,
]  # fmt: skip
