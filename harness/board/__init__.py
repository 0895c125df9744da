"""The leaderboard: records into points, points into ranked tables, tables into text; submissions and their check."""
