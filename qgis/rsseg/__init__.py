"""QGIS plugin: the rsseg program as Processing algorithms."""


def classFactory(iface):
    """Return the plugin; QGIS calls this."""
    from .plugin import RssegPlugin

    return RssegPlugin()
