"""Mathematics as text in, syntax trees and whether they are equal out; at home in the worker process."""
