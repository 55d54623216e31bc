"""Draws charts as static SVG with real text, without a browser or a network. They take the page's text colour."""

import re
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from stages.report.comparison import Line
from stages.report.curves import Curves
from stages.report.lead import Lead, lead_of
from stages.report.results import SYSTEM_ORDER, system_order_key, system_title

SIDES = ("encoder", "decoder")
WIDTH, HEIGHT = 300, 170  # pixels
POINTS = 60  # of a training curve; more are averaged, a line of noise says nothing
# By SYSTEM_ORDER; told apart on white and on black.
COLOURS = ("#8c8c8c", "#c264a0", "#e08f00", "#2aa198", "#3f87d9", "#d9541e", "#7a6fd0", "#6f9a1c", "#a0703c", "#d0527a")
PANELS = (  # column of the curve, title
    ("validation_wer", ""),  # its title depends on the units of the language's error rate
    ("loss", "Training loss, all parts"),
    ("ce", "Cross-entropy"),
    ("kd", "Distance from the teacher (KD)"),
    ("gate_mean", "Mean of the gates"),
)
CONFIG = {
    "background": None,
    "font": "sans-serif",
    "view": {"stroke": None},
    "padding": {
        "left": 24,
        "top": 5,
        "right": 5,
        "bottom": 5,
    },  # the reader's font may be wider than the one it is drawn with
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "domainColor": "currentColor",
        "domainOpacity": 0.4,
        "tickColor": "currentColor",
        "tickOpacity": 0.4,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {"labelColor": "currentColor", "labelFontSize": 12, "orient": "bottom", "title": None, "columns": 2},
    "title": {"color": "currentColor", "fontSize": 13, "anchor": "start"},
}


@dataclass(frozen=True)
class Figure:
    name: str
    caption: str
    svg: str  # for use inside a page
    file: str  # for a file of its own: on a white background


def rate_figure(name: str, lines: list[Line], lead: Lead) -> Figure:
    systems, names = [line.result.metrics.system for line in lines], [line.result.name for line in lines]
    rates = [{"system": line.result.name, "rate": 100 * lead.of(line.result.metrics)} for line in lines]
    spans = [
        {"system": line.result.name, "low": 100 * line.interval[0], "high": 100 * line.interval[1]}
        for line in lines
        if line.interval
    ]
    axis, title = alt.Scale(zero=False, padding=8), f"{lead.name} (%)"
    y = alt.Y("system:N", sort=names, title=None, axis=alt.Axis(labelLimit=220))
    colour = alt.Color("system:N", sort=names, legend=None, scale=_scale(systems, names))
    dots = alt.Chart(alt.Data(values=rates)).mark_point(filled=True, size=80, opacity=1)
    bars = alt.Chart(alt.Data(values=spans)).mark_rule(strokeWidth=2)
    chart = alt.layer(
        bars.encode(x=alt.X("low:Q", title=title, scale=axis), x2="high:Q", y=y, color=colour),
        dots.encode(x=alt.X("rate:Q", title=title, scale=axis), y=y, color=colour),
    )
    return _figure(
        f"{name}-{lead.rate}", f"{lead.name} with its 95 % interval", chart.properties(width=WIDTH, height={"step": 26})
    )


def curve_figures(curves: Curves, language: str) -> list[Figure]:
    """Returns a small chart for each quantity that any of the language's runs recorded."""
    figures = []
    trained = sorted((method for owner, method in curves if owner == language), key=system_order_key)
    for column, title in PANELS:
        rows, methods = [], []
        title = title or lead_of(language).validation
        factor = 100 if column == "validation_wer" else 1
        for method in trained:
            points = [(point.step, getattr(point, column)) for point in curves[language, method]]
            values = _thinned([(step, factor * value) for step, value in points if value is not None])
            methods += [method] if values else []
            rows += [{"method": system_title(method), "step": step, "value": value} for step, value in values]
        if rows:
            chart = _curve_chart(rows, methods, title, dots=column == "validation_wer")
            figures.append(_figure(f"{language}-{column.replace('_', '-')}", title, chart))
    return figures


def gate_figures(name: str, lines: list[Line]) -> list[Figure]:
    with_gates = [line for line in lines if line.gates]
    names = [line.result.name for line in with_gates]
    systems = [line.result.metrics.system for line in with_gates]
    figures = []
    for side in SIDES:
        rows = [
            {"system": line.result.name, "layer": str(layer), "share": 100 * share}
            for line in with_gates
            for layer, share in enumerate(line.gates.get(side, []))
        ]
        if rows:
            title = f"Tokens routed to the expert, {side} (%)"
            figures.append(_figure(f"{name}-gates-{side}", title, _gate_chart(rows, systems, names, title)))
    return figures


def size_figure(name: str, points: list[dict[str, Any]], title: str) -> Figure:
    """points: language, system, utterances and share (in percent). One line for each language and system."""
    amounts = alt.Axis(values=sorted({point["utterances"] for point in points}), format=",d", grid=False)
    chart = alt.Chart(alt.Data(values=points), title=title).encode(
        x=alt.X(
            "utterances:Q",
            title="training utterances",
            scale=alt.Scale(type="log", nice=False, padding=10),
            axis=amounts,
        ),
        y=alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5)),
        color=alt.Color("language:N"),
    )
    of_systems = alt.Legend(symbolType="stroke", symbolSize=300, symbolStrokeColor="currentColor")
    lines = chart.mark_line(strokeWidth=2).encode(strokeDash=alt.StrokeDash("system:N", legend=of_systems))
    dots = chart.mark_point(filled=True, size=40, opacity=1)
    return _figure(name, title, alt.layer(lines, dots).properties(width=WIDTH, height=HEIGHT))


def domain_figure(name: str, points: list[dict[str, Any]], systems: dict[str, str], title: str) -> Figure:
    """points: system, corpus, layer and share (in percent). systems: by name. One line for each system and corpus."""
    layers = sorted({point["layer"] for point in points}, key=int)
    chart = alt.Chart(alt.Data(values=points), title=title).encode(
        x=alt.X("layer:N", title="layer", sort=layers, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5)),
        color=alt.Color("system:N", scale=_scale(list(systems.values()), list(systems)), sort=list(systems)),
    )
    of_corpora = alt.Legend(symbolType="stroke", symbolSize=300, symbolStrokeColor="currentColor")
    corpora = list(dict.fromkeys(point["corpus"] for point in points))
    lines = chart.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash("corpus:N", legend=of_corpora, sort=corpora)
    )
    dots = chart.mark_point(filled=True, size=40, opacity=1)
    return _figure(name, title, alt.layer(lines, dots).properties(width=WIDTH, height=HEIGHT))


def _curve_chart(rows: list[dict[str, Any]], methods: list[str], title: str, dots: bool) -> alt.Chart:
    names = [system_title(method) for method in methods]
    return (
        alt.Chart(alt.Data(values=rows), title=title)
        .mark_line(strokeWidth=2, point={"size": 30, "filled": True} if dots else False)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=5, grid=False)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
            color=alt.Color("method:N", scale=_scale(methods, names), sort=names),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def _gate_chart(rows: list[dict[str, Any]], systems: list[str], names: list[str], title: str) -> alt.Chart:
    layers = [str(layer) for layer in range(1 + max(int(row["layer"]) for row in rows))]
    return (
        alt.Chart(alt.Data(values=rows), title=title)
        .mark_bar()
        .encode(
            x=alt.X("layer:N", title="layer", sort=layers, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("system:N", sort=names),
            y=alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5)),
            color=alt.Color("system:N", scale=_scale(systems, names), sort=names),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def _scale(systems: list[str], names: list[str]) -> alt.Scale:
    """Returns the colours. A system has the same colour in every chart; an unknown one is grey."""
    colours = [COLOURS[SYSTEM_ORDER.index(s)] if s in SYSTEM_ORDER else COLOURS[0] for s in systems]
    return alt.Scale(domain=names, range=colours)


def _thinned(values: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Returns at most POINTS points, each the mean of equally many neighbours."""
    size = -(-len(values) // POINTS)
    groups = [values[start : start + size] for start in range(0, len(values), size)] if values else []
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]


def _figure(name: str, caption: str, chart: alt.TopLevelMixin) -> Figure:
    svg = vl_convert.vegalite_to_svg(chart.to_dict(), config=CONFIG)
    svg = re.sub(r'\b(id="|url\(#)', rf"\1{name}-", svg)  # ids must differ between the figures of one page
    alone = svg.replace("<svg ", '<svg style="color:#1f2328;background:#fff" ', 1)
    return Figure(name, caption, re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg), alone)
