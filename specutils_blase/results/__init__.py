"""What a fit returns: of one order, and of many.

Does not live here: how it is made (`fitting`), files (`asdf`).
"""
