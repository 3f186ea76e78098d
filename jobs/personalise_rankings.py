"""spark-submit --properties-file FILE jobs/personalise_rankings.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import personalise_rankings

if __name__ == "__main__":
    sys.exit(main(personalise_rankings))
