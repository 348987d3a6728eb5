"""Chat templates, tokens, prefix trees and the step plan.

Enters: ``Example`` (chat messages, target, choices). Leaves: ``TreeBatch`` (depth-first tokens, depths, subtree
ends, loss edges), in which every distinct token is computed once.
"""
