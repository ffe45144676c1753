"""Tests of what was broken on purpose; a package, so that its tests share one deployment."""
