"""Draws how well a model is calibrated: a reliability diagram."""

from pictures.style import BLUE, ORANGE, hide_spines, save_figure


def draw_reliability(path, tables):
    """Write a picture of how often the likeliest token was right, against how confident the model was.

    tables: name -> [(mean confidence, share that was right, number of tokens) of each bin].
    """
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(6, 5.4), layout='constrained')
    curve, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    curve.plot([0, 1], [0, 1], color='#999999', linestyle='--', linewidth=1, label='perfectly calibrated')
    for (name, table), colour, marker in zip(tables.items(), (BLUE, ORANGE), 'os'):
        confidence, share, count = zip(*table)
        curve.plot(confidence, share, marker=marker, markersize=5, color=colour, label=name)
        counts.plot(confidence, count, marker=marker, markersize=4, color=colour)
    curve.set_ylabel('share that was right')
    curve.legend(frameon=False, fontsize=9)
    curve.set_ylim(0, 1)
    counts.set_yscale('log')
    counts.set_ylabel('tokens')
    counts.set_xlabel('model probability of the likeliest token, mean of each bin')
    counts.set_xlim(0, 1)
    for axes in (curve, counts):
        axes.grid(color='#dddddd', linewidth=0.6)
        hide_spines(axes, 'top', 'right')
    save_figure(figure, path)
    pyplot.close(figure)
